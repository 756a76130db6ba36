"""Making models: training, evaluation, quantisation, and the gates before a model may serve."""
