"""What can go wrong, said in one line."""


class EvaluationError(Exception):
    """A bad call, a picture or weights that cannot be read. The text is one line for the user."""


class MissingWeights(EvaluationError):
    """A metric's weights or its package are not there: the metric is skipped, the others go on."""


class Undefined(EvaluationError):
    """A metric has no value for an item, which is no fault of the item: no face to compare, for example."""
