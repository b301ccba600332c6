"""The former name of `eval.knn`."""
