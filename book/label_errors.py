"""Which labels are wrong? From the out-of-fold probabilities of any classifier; nothing else is needed.

python label_errors.py
"""

import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from tadlib import find_label_errors
from tadlib.noise import inject

x, true = load_digits(return_X_y=True)
labels = inject(torch.from_numpy(true), "symmetric", 0.2, n_classes=10, seed=0).noisy_N.numpy()
model = LogisticRegression(C=0.01, max_iter=500)
p = cross_val_predict(model, x / 16, labels, method="predict_proba")
suspects = find_label_errors(labels, probabilities=p, images=x.reshape(-1, 8, 8))
print(suspects[suspects["flagged"]].sort_values("trust"))  # worst first
print(suspects.attrs["noise_rate"], suspects.attrs["interval"])
