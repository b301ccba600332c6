"""Transfer evaluations and the comparison of representations, beyond accuracy on the test set."""
