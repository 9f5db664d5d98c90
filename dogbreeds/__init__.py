"""Transfer-learning experiments in Keras: configured with Hydra, recorded in MLflow, diagnosed by the framework.

A run checks the preprocessing against the pretrained weights before it trains, caches the features of the frozen part
of the backbone, and ends with a verdict. Each command is a module, such as `python -m dogbreeds.train`.
"""
