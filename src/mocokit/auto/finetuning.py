"""Batch size and learning rate of fine-tuning, from the number of images and the network; epochs, from the time."""

MOST_BATCH, LEAST_BATCH = 64, 16
STEPS_AN_EPOCH = 32  # few labels take small steps, or the last epoch comes before anything is learned
LR_TIMES_WIDTH = 0.512
MOST_LR = {True: 4e-3, False: 1e-3}  # with batch norm, whose weights have no scale, and without


def choose_batch_size(images: int) -> int:
    """Images a step, for ``images`` to train on."""
    return max(LEAST_BATCH, min(MOST_BATCH, images // STEPS_AN_EPOCH))


def choose_lr(features: int, batch_norm: bool) -> float:
    """AdamW's learning rate for a network of so many ``features``, with batch norm or without.

    Adam's best rate falls with the width of a network (Yang et al. 2022, arXiv 2203.03466).
    """
    return round(min(MOST_LR[batch_norm], LR_TIMES_WIDTH / features), 6)


def choose_epochs(seconds: float, epoch: float, once: float, most: int) -> int:
    """How many epochs of ``epoch`` seconds fit into ``seconds``, beside what takes ``once`` seconds: 1 to ``most``."""
    return max(1, min(most, int((seconds - once) / epoch)))
