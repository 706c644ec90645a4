"""Terms of the pair losses that weigh pairs."""

from .changes import Change

CHANGES = {
    "losses/weighted.py": [
        Change(
            "multi-similarity: mining of negatives",
            ".min - epsilon",
            ".min - 10",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: mining of positives",
            "upper = negative.max + epsilon",
            "upper = negative.max + 10",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: alpha",
            "softplus(positive.lse + alpha * base) / alpha",
            "softplus(positive.lse + alpha * base)",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: beta",
            "softplus(negative.lse - beta * base) / beta",
            "softplus(negative.lse - beta * base)",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: base of the positives",
            "positive.lse + alpha * base",
            "positive.lse",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: base of the negatives",
            "negative.lse - beta * base",
            "negative.lse",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "multi-similarity: pull",
            "reduce(pull + push, reduction, pairs.n)",
            "reduce(push, reduction, pairs.n)",
            "losses/test_weighted::test_value_and_gradients[multi-similarity-self]",
        ),
        Change(
            "circle: relaxation of the positives",
            'Transform("circle", 1 + m, 1 - m)',
            'Transform("circle", 1.0, 1 - m)',
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: margin of the positives",
            'Transform("circle", 1 + m, 1 - m)',
            'Transform("circle", 1 + m, 1.0)',
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: relaxation of the negatives",
            'Transform("circle", m, -m)',
            'Transform("circle", 0.0, -m)',
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: margin of the negatives",
            'Transform("circle", m, -m)',
            'Transform("circle", m, 0.0)',
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: gamma",
            'Transform("circle", m, -m), scale=gamma)',
            'Transform("circle", m, -m), scale=1.0)',
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: product of both sums",
            "rows = softplus(positive + negative)",
            "rows = softplus(positive) + softplus(negative)",
            "losses/test_peers::test_circle_of_a_large_scale",
        ),
        Change(
            "circle: each pair once",
            "- (2 * math.log(2) if twice else 0)",
            "",
            "losses/test_weighted::test_circle_of_the_batch[0.25-256.0-self]",
        ),
        Change(
            "circle: mean over what is above 0",
            "((rows > 0) | rows.isnan()).sum()",
            "pairs.n",
            "losses/test_peers::test_circle_of_a_large_scale",
        ),
        Change(
            "weighted triplet: distance of the negatives",
            "softplus(far - near), 0), reduction",
            "softplus(-near), 0), reduction",
            "losses/test_weighted::test_agw_loses_far_negatives_and_exact_does_not[15.0]",
        ),
        Change(
            "weighted triplet: distance of the positives",
            "softplus(far - near), 0), reduction",
            "softplus(far), 0), reduction",
            "losses/test_weighted::test_agw_loses_far_negatives_and_exact_does_not[15.0]",
        ),
        Change(
            "weighted triplet: itself at 0",
            "near = torch.where(some, near * lse.sigmoid(), 0)",
            "pass",
            "losses/test_weighted::test_duplicates[cpp-weighted triplet of AGW]",
        ),
        Change(
            "weighted triplet: itself in the weights",
            "lse = torch.where(some, softplus(lse), 0)",
            "pass",
            "losses/test_weighted::test_duplicates[cpp-weighted triplet of AGW]",
        ),
        Change(
            "weighted triplet: the authors' positives",
            "near = near / (1 + 1e-6 * torch.exp(farthest - lse))",
            "pass",
            "losses/test_weighted::test_duplicates[cpp-weighted triplet of AGW]",
        ),
        Change(
            "weighted triplet: the authors' negatives",
            "far = far * torch.sigmoid(torch.where(negative.count > 0, negative.lse, 0) - math.log(1e-6))",
            "pass",
            "losses/test_weighted::test_agw_loses_far_negatives_and_exact_does_not[15.0]",
        ),
        Change(
            "weighted triplet: rows of both",
            "counted = (some | include_self) & (negative.count > 0)",
            "counted = some | include_self",
            "losses/test_weighted::test_value_and_gradients[weighted triplet of AGW-one class]",
        ),
        Change(
            "ranked list: share of the pull",
            "(1 - imbalance) * pull",
            "pull",
            "losses/test_weighted::test_duplicates[cpp-ranked list]",
        ),
        Change(
            "ranked list: share of the push",
            "imbalance * push",
            "push",
            "losses/test_weighted::test_duplicates[cpp-ranked list]",
        ),
        Change(
            "ranked list: Tp",
            "transform=LINEAR, scale=-tp, upper=near)",
            "transform=LINEAR, scale=0.0, upper=near)",
            "losses/test_weighted::test_duplicates[cpp-ranked list weighted]",
        ),
        Change(
            "ranked list: Tn",
            "transform=LINEAR, scale=tn, lower=far)",
            "transform=LINEAR, scale=0.0, lower=far)",
            "losses/test_weighted::test_duplicates[cpp-ranked list]",
        ),
        Change(
            "ranked list: positives outside alone",
            "scale=-tp, upper=near)",
            "scale=-tp)",
            "losses/test_weighted::test_duplicates[cpp-ranked list]",
        ),
        Change(
            "ranked list: negatives inside alone",
            "scale=tn, lower=far)",
            "scale=tn)",
            "losses/test_peers::test_ranked_list_counts_negatives_at_no_distance",
        ),
        Change(
            "ranked list: threshold",
            "sign * (mean - threshold) * share",
            "sign * mean * share",
            "losses/test_peers::test_ranked_list_counts_negatives_at_no_distance",
        ),
        Change(
            "ranked list: what is added to the weights",
            "(mean - threshold) * share",
            "(mean - threshold)",
            "losses/test_weighted::test_duplicates[cpp-ranked list]",
        ),
        Change(
            "ranked list: constant weights",
            "mean = mean.detach() + (lse - lse.detach()) / scale",
            "pass",
            "losses/test_weighted::test_duplicates[cpp-ranked list of constant weights]",
        ),
        Change(
            "ranked list: constant sum of weights",
            "        lse = lse.detach()\n",
            "",
            "losses/test_weighted::test_duplicates[cpp-ranked list of constant weights]",
        ),
    ],
    "losses/lifted.py": [
        Change(
            "lifted: negatives of the positive",
            "torch.logaddexp(torch.where(some, a, 0), torch.where(some, b, 0)) - far",
            "torch.where(some, a, 0) - far",
            "losses/test_weighted::test_duplicates[cpp-lifted]",
        ),
        Change(
            "lifted: margin of the negatives",
            "torch.where(some, b, 0)) - far, 0)",
            "torch.where(some, b, 0)), 0)",
            "losses/test_weighted::test_duplicates[cpp-lifted]",
        ),
        Change(
            "lifted: margin of the positives",
            "hinge = (negatives + near - pairs",
            "hinge = (negatives - pairs",
            "losses/test_weighted::test_duplicates[cpp-lifted cosine]",
        ),
        Change(
            "lifted: square", "hinge.square() / 2", "hinge / 2", "losses/test_weighted::test_duplicates[cpp-lifted]"
        ),
        Change(
            "lifted: half", "hinge.square() / 2", "hinge.square()", "losses/test_weighted::test_duplicates[cpp-lifted]"
        ),
        Change(
            "lifted: hinge",
            "found.columns)).relu()",
            "found.columns))",
            "losses/test_weighted::test_value_and_gradients[lifted, some hinges at 0-self",
        ),
        Change(
            "lifted: no negative at all",
            "torch.where(rows.count.sum() > 0, hinge.square() / 2, 0)",
            "hinge.square() / 2",
            "losses/test_peers::test_batches_of_one_kind_of_pair[lifted-one class]",
        ),
        Change(
            "generalised lifted: margin of the positives",
            "positive.lse + near, 0)",
            "positive.lse, 0)",
            "losses/test_weighted::test_duplicates[cpp-generalized lifted cosine]",
        ),
        Change(
            "generalised lifted: margin of the negatives",
            "negative.lse - far, 0)",
            "negative.lse, 0)",
            "losses/test_weighted::test_duplicates[cpp-generalized lifted]",
        ),
        Change(
            "generalised lifted: hinge",
            "(pull + push).relu()",
            "(pull + push)",
            "losses/test_weighted::test_duplicates[cpp-generalized lifted cosine]",
        ),
        Change(
            "generalised lifted: rows without negatives",
            "push = torch.where(negative.count > 0, negative.lse - far, 0)",
            "push = torch.where(negative.count > 0, negative.lse - far, -1e9)",
            "losses/test_peers::test_batches_of_one_kind_of_pair[generalized lifted-one class]",
        ),
    ],
}
