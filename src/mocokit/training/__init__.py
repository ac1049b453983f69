"""How the encoders are trained: the loop, its tasks, checkpoints and rows of metrics. Read ``loop.py`` first."""
