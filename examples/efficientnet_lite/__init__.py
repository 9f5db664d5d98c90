"""EfficientNet-Lite for dogbreeds: a backbone from outside, with converted ImageNet weights and their classifier."""
