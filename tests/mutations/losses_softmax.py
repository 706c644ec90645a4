"""Terms of the pair losses that are softmaxes."""

from .changes import Change

CHANGES = {
    "losses/softmax.py": [
        Change(
            "SupCon: positives in the denominator",
            "cross_entropy(negative.lse, of_statistics(positive, scale, 0.0))",
            "softplus(negative.lse - of_statistics(positive, scale, 0.0).mean)",
            "losses/test_softmax::test_supcon[one_set]",
        ),
        Change(
            "SupCon: base temperature",
            "loss = loss / (scale * base_temperature)",
            "loss = loss / scale",
            "losses/test_softmax::test_supcon[one_set]",
        ),
        Change(
            "SupCon: temperature of the authors' mean",
            "loss = loss / (scale * base_temperature)",
            "loss = loss / base_temperature",
            "losses/test_softmax::test_supcon[one_set]",
        ),
        Change(
            "SupCon: no negative at all",
            "some = (negative.count > 0).any()",
            "some = (negative.count >= 0).any()",
            "losses/test_softmax::test_supcon_of_one_class",
        ),
        Change(
            "SupCon: mean over losses above 0",
            "return reduce_counted(loss, nonzero(loss), reduction, pairs.group)",
            "return reduce_counted(loss, torch.ones_like(loss, dtype=torch.bool), reduction, pairs.group)",
            "losses/test_softmax::test_supcon[one_set]",
        ),
        Change(
            "NT-Xent: scale of the positive",
            "- scale * pairs.values(listed.rows, listed.columns)",
            "- pairs.values(listed.rows, listed.columns)",
            "losses/test_softmax::test_nt_xent[one_set]",
        ),
        Change(
            "NT-Xent: scale of the negatives",
            'negative = pairs.statistics("negative", transform=LINEAR, scale=scale).lse\n    listed',
            'negative = pairs.statistics("negative", transform=LINEAR, scale=1.0).lse\n    listed',
            "losses/test_softmax::test_nt_xent[one_set]",
        ),
        Change(
            "NT-Xent: negatives of the row",
            "take(negative, listed.rows)",
            "take(negative, 0 * listed.rows)",
            "losses/test_softmax::test_nt_xent[one_set]",
        ),
        Change(
            "N-pairs: the positive is the second row",
            "order[1:][first]",
            "order[:-1][first]",
            "losses/test_softmax::test_n_pairs[cosine]",
        ),
        Change(
            "N-pairs: one pair a label",
            "first = same & ~F.pad(same, (1, 0))[:-1]",
            "first = same",
            "losses/test_softmax::test_n_pairs[cosine]",
        ),
        Change(
            "N-pairs: temperature",
            "return info_nce_of(chosen, scale=scale, paired=True",
            "return info_nce_of(chosen, scale=1.0, paired=True",
            "losses/test_softmax::test_n_pairs[cosine]",
        ),
        Change(
            "NCA: all positives",
            "logit = torch.where(some, positive.lse, 0)\n    loss",
            "logit = torch.where(some, positive.lse - positive.count.to(positive.lse.dtype).log(), 0)\n    loss",
            "losses/test_softmax::test_nca[one_set-True-squared_euclidean]",
        ),
        Change(
            "NCA: rows with a positive",
            "of_logits(logit, some))\n    return reduce_counted(loss, some,",
            "of_logits(logit, some))\n    return reduce_counted(loss, some | True,",
            "losses/test_softmax::test_nca[one_set-True-squared_euclidean]",
        ),
        Change(
            "SupCon: a row is no pair of itself",
            "loss = cross_entropy(negative.lse, of_statistics(positive, scale, 0.0))",
            """itself = Pairs(pairs.x, pairs.labels, pairs.x, pairs.labels, similarity=pairs.similarity)
    positive = itself.statistics("positive", moments=True, transform=LINEAR, scale=scale)
    loss = cross_entropy(negative.lse, of_statistics(positive, scale, 0.0))""",
            "losses/test_softmax::test_supcon[one_set",
        ),
    ],
    "losses/info_nce.py": [
        Change(
            "InfoNCE: margin of the numerator",
            "mean = scale * (found.sum / found.count.clamp_min(1) - margin)",
            "mean = scale * (found.sum / found.count.clamp_min(1))",
            "losses/test_softmax::test_info_nce_symmetric_by_labels",
        ),
        Change(
            "InfoNCE: margin of the denominator",
            "torch.where(some, found.lse, 0) - scale * margin, mean)",
            "torch.where(some, found.lse, 0), mean)",
            "losses/test_softmax::test_info_nce_symmetric_by_labels",
        ),
        Change(
            "InfoNCE: margin of one positive",
            "of_logits(scale * (own - margin))",
            "of_logits(scale * own)",
            "losses/test_listed::test_value_and_gradients[cosine-False]",
        ),
        Change(
            "InfoNCE: mean of the positives",
            "found.sum / found.count.clamp_min(1) - margin",
            "found.sum - margin",
            "losses/test_softmax::test_info_nce_by_labels[one_set-options0-cosine]",
        ),
        Change(
            "InfoNCE: scale of the positives",
            "of_logits(scale * (own - margin))",
            "of_logits(own - margin)",
            "losses/test_softmax::test_info_nce_of_paired_rows[0.0-12]",
        ),
        Change(
            "cross-entropy: all pairs",
            "over + (positive.lse - positive.mean)",
            "over",
            "losses/test_softmax::test_info_nce_by_labels[one_set-options0-cosine]",
        ),
        Change(
            "InfoNCE: coefficient",
            "loss = loss + (lse_coefficient - 1) * (loss + of_side.mean)",
            "loss = loss + (lse_coefficient - 1) * loss",
            "losses/test_softmax::test_info_nce_symmetric[0.9]",
        ),
        Change(
            "InfoNCE: the positives left out",
            "        if positive_in_denominator:",
            "        if True:",
            "losses/test_softmax::test_info_nce_symmetric_without_the_positive_in_the_denominator",
        ),
        Change(
            "InfoNCE: queue",
            "negative = [_logaddexp(negative[0], in_queue)]",
            "pass",
            "losses/test_softmax::test_info_nce_with_a_queue[cosine-False]",
        ),
        Change(
            "InfoNCE: further labels",
            "negative = [_logaddexp(a, side.lse) for a, side in zip(negative, found, strict=True)]",
            "pass",
            "losses/test_softmax::test_info_nce_weighted_by_label_columns[2]",
        ),
        Change(
            "InfoNCE: both sides",
            "else (sides[0] + sides[1]) / 2",
            "else sides[0] + sides[1]",
            "losses/test_softmax::test_info_nce_symmetric[1.0]",
        ),
        Change(
            "InfoNCE: the columns' side",
            "else (sides[0] + sides[1]) / 2",
            "else sides[0]",
            "losses/test_softmax::test_info_nce_symmetric[1.0]",
        ),
        Change(
            "InfoNCE: given positives",
            "if positive is None else positive.to(negative[0].dtype)",
            "if True else positive.to(negative[0].dtype)",
            "losses/test_softmax::test_info_nce_with_explicit_positives",
        ),
        Change(
            "InfoNCE: scale of listed negatives",
            "logits = scale * pairs.values(rows.flatten()",
            "logits = pairs.values(rows.flatten()",
            "losses/test_listed::test_value_and_gradients[cosine-False]",
        ),
        Change(
            "InfoNCE: no negative is -1",
            "logits = torch.where(none, -torch.inf, logits)",
            "pass",
            "losses/test_listed::test_value_and_gradients[dot-False]",
        ),
    ],
    "losses/soft_target.py": [
        Change(
            "soft targets: negatives' share",
            "z = (count + weight * negative_count).clamp_min(1)",
            "z = count.clamp_min(1)",
            "losses/test_softmax::test_soft_target_info_nce[one_set-1.0]",
        ),
        Change(
            "soft targets: similarity of the positives",
            "scale * (total + weight * negative_total) / z",
            "scale * (weight * negative_total) / z",
            "losses/test_softmax::test_soft_target_info_nce[one_set-1.0]",
        ),
        Change(
            "soft targets: similarity of the negatives",
            "scale * (total + weight * negative_total) / z",
            "scale * total / z",
            "losses/test_softmax::test_soft_target_info_nce[one_set-1.0]",
        ),
        Change(
            "soft targets: entropy",
            "count * scale / z - top - z.log()",
            "count * scale / z - top",
            "losses/test_softmax::test_soft_target_info_nce[one_set-1.0]",
        ),
        Change(
            "soft targets: labels",
            "count * scale / z - top - z.log()",
            "-top - z.log()",
            "losses/test_softmax::test_soft_target_info_nce[one_set-1.0]",
        ),
        Change(
            "soft targets: the row itself",
            "lse = torch.where(some, torch.logaddexp(lse, scale * own), scale * own)",
            "pass",
            "losses/test_softmax::test_soft_target_info_nce_with_the_diagonal",
        ),
        Change(
            "soft targets: the row among the positives",
            "count, total, some = count + 1, total + own, torch.ones_like(some)",
            "some = torch.ones_like(some)",
            "losses/test_softmax::test_soft_target_info_nce_with_the_diagonal",
        ),
    ],
}
