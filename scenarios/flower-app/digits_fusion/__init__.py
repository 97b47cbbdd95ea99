"""A Flower app whose clients have different models and learn from each other's predictions."""
