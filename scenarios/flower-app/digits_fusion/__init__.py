"""A Flower app whose clients have models of different architectures and learn from each other's predictions."""
