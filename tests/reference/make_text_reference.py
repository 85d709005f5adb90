"""Makes text_reference.npz and text_weights.bin with PyTorch.

The first holds hidden states and gradients of small random encoders, the second
tensors of all kinds as PyTorch saves them. With torch and transformers installed:
`python tests/data/make_text_reference.py`.
"""

import collections
import pathlib

import numpy as np
import torch
from transformers import (
  BertConfig,
  BertModel,
  RobertaConfig,
  RobertaModel,
  XLMRobertaConfig,
  XLMRobertaModel,
)

SIZES = {
  "vocab_size": 29,
  "hidden_size": 8,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 12,
  "max_position_embeddings": 12,
  "type_vocab_size": 2,
  "hidden_dropout_prob": 0.0,
  "attention_probs_dropout_prob": 0.0,
  "attn_implementation": "eager",
}
FAMILIES = {
  "bert": (BertModel, BertConfig, {"layer_norm_eps": 1e-12, "pad_token_id": 0}),
  "roberta": (
    RobertaModel,
    RobertaConfig,
    {"layer_norm_eps": 1e-5, "pad_token_id": 1, "hidden_act": "gelu_new"},
  ),
  "xlm-roberta": (
    XLMRobertaModel,
    XLMRobertaConfig,
    {"layer_norm_eps": 1e-5, "pad_token_id": 1},
  ),
}


def main():
  arrays = {}
  for number, (family, (model, config, options)) in enumerate(FAMILIES.items()):
    torch.manual_seed(number)
    net = model(config(**SIZES, **options), add_pooling_layer=False).eval()
    for name, value in net.named_parameters():
      # Norms and biases start as ones and zeros, which would hide mistakes.
      value.data += 0.3 * torch.randn_like(value)
      arrays[f"{family}/weight/{name}"] = value.detach().numpy().copy()
    tokens = torch.randint(2, 29, (3, 7))
    mask = torch.arange(7)[None] < torch.tensor([7, 4, 1])[:, None]
    tokens[~mask] = options["pad_token_id"]
    types = torch.randint(0, 2, (3, 7))
    out = net(tokens, mask.long(), types, output_hidden_states=True)
    cotangent = torch.randn(3, 7, 8) * mask[..., None]
    (out.last_hidden_state * cotangent).sum().backward()
    for name, value in net.named_parameters():
      arrays[f"{family}/gradient/{name}"] = value.grad.numpy()
    states = [s.detach().numpy() for s in out.hidden_states]
    arrays[f"{family}/states"] = np.stack(states)
    inputs = {"tokens": tokens, "mask": mask, "types": types, "cotangent": cotangent}
    for name, value in inputs.items():
      arrays[f"{family}/{name}"] = value.numpy()
  folder = pathlib.Path(__file__).parent
  np.savez_compressed(folder / "text_reference.npz", **arrays)
  base = torch.arange(12, dtype=torch.float32)
  tensors = {
    "whole": base.reshape(3, 4),
    "turned": base.reshape(3, 4).T,
    "part": base.clone()[5:8],  # views that overlap are refused
    "half": (base / 3).half(),
    "brain": (base / 4).bfloat16(),
    "counts": torch.arange(3),
    "empty": torch.zeros(0, 2),
    "trained": torch.nn.Parameter(base[:2] * 2),
  }
  torch.save(collections.OrderedDict(tensors), folder / "text_weights.bin")


if __name__ == "__main__":
  main()
