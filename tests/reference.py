"""Slow, plain NumPy versions of the algorithm's parts, written from the papers: what the fast ones must equal."""

import numpy as np


def info_nce(q, k, queue, temperature, own=None):
    """MoCo v1, equation 1, one query at a time, in float64."""
    losses = []
    for i in range(len(q)):
        positive = np.dot(q[i], k[i]) / temperature
        total = np.exp(positive)
        for j in range(len(queue)):
            if own is None or not own[i, j]:
                total += np.exp(np.dot(q[i], queue[j]) / temperature)
        losses.append(np.log(total) - positive)
    return float(np.mean(losses))


def info_nce_in_batch(q, k, temperature):
    """``ctr`` of MoCo v3, algorithm 1, one query at a time in float64, without its factor of 2 tau."""
    losses = []
    for i in range(len(q)):
        logits = [np.dot(q[i], k[j]) / temperature for j in range(len(k))]
        losses.append(np.log(np.sum(np.exp(logits))) - logits[i])
    return float(np.mean(losses))


def moco_v3_loss(q1, q2, k1, k2, temperature):
    """MoCo v3, algorithm 1: ctr(q1, k2) + ctr(q2, k1)."""

    def ctr(q, k):
        return 2 * temperature * info_nce_in_batch(q, k, temperature)

    return ctr(q1, k2) + ctr(q2, k1)


def lars_step(p, grad, buffer, *, lr, momentum, decay, trust):
    """One step of LARS as in the code of MoCo v3 (facebookresearch/moco-v3, moco/optimizer.py): (p, buffer)."""
    update = grad + decay * p
    norm, update_norm = np.linalg.norm(p), np.linalg.norm(update)
    factor = trust * norm / update_norm if norm > 0 and update_norm > 0 else 1.0
    buffer = momentum * buffer + factor * update
    return p - lr * buffer, buffer


def momentum_update(theta_k, theta_q, m):
    """MoCo v1, equation 2."""
    return [m * k + (1 - m) * q for k, q in zip(theta_k, theta_q, strict=True)]


def knn_top(bank, bank_labels, queries, query_labels, k, temperature):
    """Wu et al. 2018, section 3.4: (top-1, top-5). A class without a vote is not among the five."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    classes = max(bank_labels.max(), query_labels.max()) + 1
    hits = np.zeros(2)
    for query, label in zip(queries, query_labels, strict=True):
        similarity = bank @ query
        nearest = sorted(range(len(bank)), key=lambda j: -similarity[j])[:k]
        votes = np.zeros(classes)
        for j in nearest:
            votes[bank_labels[j]] += np.exp((similarity[j] - similarity[nearest[0]]) / temperature)
        ranking = [c for c in np.argsort(-votes, kind="stable") if votes[c] > 0]
        hits += [label == ranking[0], label in ranking[:5]]
    return tuple(hits / len(queries))


def batch_norm(x, weight, bias, eps):
    """Normalise [N, C, H, W] by its own mean and (biased) variance."""
    mean = x.mean(axis=(0, 2, 3), keepdims=True)
    var = x.var(axis=(0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * weight[None, :, None, None] + bias[None, :, None, None]
