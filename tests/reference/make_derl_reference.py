"""Makes derl_reference.npz: PyTorch modules whose numbers DERL's layers must give.

    pip install torch==2.13.0 numpy
    python tests/data/make_derl_reference.py

Post-norm blocks of `torch.nn` with random parameters, in evaluation: an encoder layer
(the intra-modal encoder), two chained cross-attention stages with a feed-forward part
(the cross-modal encoder), a convolution, and batch normalisation in training.
"""

import pathlib

import numpy as np
import torch
from torch import nn

WIDTH, HEADS, HIDDEN, BATCH = 6, 2, 8, 2
STEPS = {"target": 5, "first": 4, "second": 3}
LENGTHS = {"target": (5, 3), "first": (4, 2), "second": (1, 3)}


def randomise(module):
  for parameter in module.parameters():
    nn.init.normal_(parameter, std=0.4)


def save_attention(arrays, prefix, attention):
  kernels = attention.in_proj_weight.detach().numpy().reshape(3, WIDTH, WIDTH)
  biases = attention.in_proj_bias.detach().numpy().reshape(3, WIDTH)
  for name, kernel, bias in zip(
    ("query", "key", "value"), kernels, biases, strict=True
  ):
    save(arrays, f"{prefix}/{name}", kernel, bias)
  save_linear(arrays, f"{prefix}/out", attention.out_proj)


def save_linear(arrays, prefix, linear):
  save(arrays, prefix, linear.weight.detach().numpy(), linear.bias.detach().numpy())


def save(arrays, prefix, weight, bias):
  arrays[f"{prefix}/kernel"], arrays[f"{prefix}/bias"] = weight.T, bias


def save_norm(arrays, prefix, norm):
  arrays[f"{prefix}/scale"] = norm.weight.detach().numpy()
  arrays[f"{prefix}/bias"] = norm.bias.detach().numpy()


def main():
  torch.manual_seed(20240331)
  arrays, streams, hidden = {}, {}, {}
  for name, steps in STEPS.items():
    streams[name] = torch.randn(BATCH, steps, WIDTH)
    hidden[name] = torch.arange(steps)[None] >= torch.tensor(LENGTHS[name])[:, None]
    arrays[f"{name}/values"] = streams[name].numpy()
    arrays[f"{name}/mask"] = ~hidden[name].numpy()

  intra = nn.TransformerEncoderLayer(
    WIDTH, HEADS, HIDDEN, dropout=0.0, activation="relu", batch_first=True
  )
  randomise(intra)
  # Training mode keeps PyTorch off its fused path; without dropout it is the same.
  out = intra(streams["target"], src_key_padding_mask=hidden["target"])
  arrays["intra/out"] = out.detach().numpy()
  save_attention(arrays, "intra/attention_1", intra.self_attn)
  save_norm(arrays, "intra/norm_1", intra.norm1)
  save_linear(arrays, "intra/ffn_1", intra.linear1)
  save_linear(arrays, "intra/ffn_2", intra.linear2)
  save_norm(arrays, "intra/norm_2", intra.norm2)

  values = streams["target"]
  for number, source in enumerate(("first", "second"), start=1):
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    norm = nn.LayerNorm(WIDTH)
    randomise(attention)
    randomise(norm)
    keys = streams[source]
    added, _ = attention(values, keys, keys, key_padding_mask=hidden[source])
    values = norm(values + added)
    save_attention(arrays, f"cross/attention_{number}", attention)
    save_norm(arrays, f"cross/norm_{number}", norm)
  first, second = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
  norm = nn.LayerNorm(WIDTH)
  for module in (first, second, norm):
    randomise(module)
  values = norm(values + second(torch.relu(first(values))))
  arrays["cross/out"] = values.detach().numpy()
  save_linear(arrays, "cross/ffn_1", first)
  save_linear(arrays, "cross/ffn_2", second)
  save_norm(arrays, "cross/norm_3", norm)

  convolution = nn.Conv1d(WIDTH, 4, 3, padding=1)
  randomise(convolution)
  out = convolution(streams["target"].transpose(1, 2))
  arrays["conv/kernel"] = convolution.weight.detach().numpy().transpose(2, 1, 0)
  arrays["conv/bias"] = convolution.bias.detach().numpy()
  normalise = nn.BatchNorm1d(4, eps=1e-5)
  randomise(normalise)
  save_norm(arrays, "norm", normalise)
  arrays["norm/out"] = normalise(out).transpose(1, 2).detach().numpy()

  arrays = {name: np.asarray(value) for name, value in arrays.items()}
  np.savez(pathlib.Path(__file__).with_name("derl_reference.npz"), **arrays)


if __name__ == "__main__":
  main()
