"""The toolbox for making models: samples, losses, a trainer, evaluation, packages."""
