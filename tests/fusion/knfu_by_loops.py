"""KnFu written out from its formulas in float64 loops: slow, plain, and sharing no code with the package."""

from __future__ import annotations

import math


def softmax(row, temperature):
    top = max(row)
    powers = [math.exp((float(z) - float(top)) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def smooth(row, epsilon):
    total = sum(value + epsilon for value in row)
    return [(value + epsilon) / total for value in row]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def js(a, b):
    middle = [(x + y) / 2 for x, y in zip(a, b, strict=True)]
    return (kl(a, middle) + kl(b, middle)) / 2


def cosine_distance(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def class_distributions(q, kind, epsilon, label_counts):
    clients, samples, classes = len(q), len(q[0]), len(q[0][0])
    p = []
    for n in range(clients):
        if kind == "shared":
            row = [label_counts[n][c] / sum(label_counts[n]) for c in range(classes)]
        elif kind == "hard":
            row = [0.0] * classes
            for i in range(samples):
                row[q[n][i].index(max(q[n][i]))] += 1 / samples
        else:
            row = [sum(q[n][i][c] for i in range(samples)) / samples for c in range(classes)]
        p.append(row)
    if kind == "calibrated":
        mean = [sum(p[n][c] for n in range(clients)) / clients for c in range(classes)]
        p = [[row[c] / mean[c] for c in range(classes)] for row in p]
        p = [[value / sum(row) for value in row] for row in p]
    return [smooth(row, epsilon) for row in p]


def distance(divergence, n, m, p, q, epsilon):
    if divergence == "kl":
        return kl(p[n], p[m])
    if divergence == "reverse":
        return kl(p[m], p[n])
    if divergence == "symmetric":
        return (kl(p[n], p[m]) + kl(p[m], p[n])) / 2
    if divergence == "js":
        return js(p[n], p[m])
    if divergence == "prediction_kl":
        rows = [kl(smooth(a, epsilon), smooth(b, epsilon)) for a, b in zip(q[n], q[m], strict=True)]
        return sum(rows) / len(rows)
    return cosine_distance([x for row in q[n] for x in row], [x for row in q[m] for x in row])


def knfu(
    logits,
    *,
    beta=10.0,
    temperature=1.0,
    distribution="soft",
    divergence="kl",
    samples=None,
    per_class=False,
    rho=None,
    age=None,
    label_counts=None,
    neighbours=None,
):
    """Return p, d, W and K as nested lists."""
    clients, rows, classes = len(logits), len(logits[0]), len(logits[0][0])
    epsilon = 1e-2 if distribution == "hard" else 1e-6
    q = [[softmax(row, temperature) for row in client] for client in logits]
    p = class_distributions(q, distribution, epsilon, label_counts)
    d = [[distance(divergence, n, m, p, q, epsilon) for m in range(clients)] for n in range(clients)]
    weights = []
    for n in range(clients):
        row = []
        for m in range(clients):
            weight = math.exp(-beta * d[n][m])
            weight *= samples[m] if samples is not None else 1
            weight *= rho ** age[m] if rho is not None else 1
            if neighbours is not None and m != n:
                closer = sum(1 for k in range(clients) if k not in (n, m) and d[n][k] < d[n][m])
                weight *= closer < neighbours
            row.append(weight)
        weights.append([weight / sum(row) for weight in row])
    fused = []
    for n in range(clients):
        fused.append([])
        for i in range(rows):
            row = []
            for c in range(classes):
                if per_class:
                    top = sum(weights[n][m] * p[m][c] * q[m][i][c] for m in range(clients))
                    row.append(top / sum(weights[n][m] * p[m][c] for m in range(clients)))
                else:
                    row.append(sum(weights[n][m] * q[m][i][c] for m in range(clients)))
            fused[n].append([value / sum(row) for value in row])
    return p, d, weights, fused
