"""The progression of diabetes in 442 patients, in scikit-learn: a data set of regression without a file.

Efron, Hastie, Johnstone & Tibshirani, "Least Angle Regression", Annals of Statistics 32, 2004.
"""

from fedkd.data.dataset import Dataset, dataset_from_arrays
from fedkd.data.partitions.stratified import own_test_split
from fedkd.data.request import SourceRequest
from fedkd.errors import refuse_if


def load(request: SourceRequest) -> Dataset:
    """Return ten features of each patient, unscaled, and the progression after a year.

    Arguments: the share of the test split (`test_share`) and its seed (`split_seed`).
    """
    args = request.arguments(test_share=0.2, split_seed=0)
    told = "the target of 'diabetes' is a quantity; set data.task = \"regression\""
    refuse_if(not request.regression, told, "data.dataset")
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    test = own_test_split(y, args["test_share"], args["split_seed"])
    arrays = x[~test], y[~test], x[test], y[test]
    return dataset_from_arrays(request.name, *arrays, class_names=["progression"], regression=True)
