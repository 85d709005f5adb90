"""MMoLRE's network against a float64 one, for every option that decides its numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_mmolre as tiny
from tiny_mmolre import EMOTION, SENTIMENT, WIDTHS

from msa_jax.layers.masking import hide_unavailable
from msa_jax.models.mmolre.system import shared

_erf = np.vectorize(math.erf)


def gelu(values):
  return 0.5 * values * (1.0 + _erf(values / math.sqrt(2.0)))


def dense(params, values):
  return values @ params["kernel"] + params["bias"]


def norm(params, values):
  centred = values - values.mean(axis=-1, keepdims=True)
  scaled = centred / np.sqrt(values.var(axis=-1, keepdims=True) + 1e-5)
  return scaled * params["scale"] + params["bias"]


def softmax(scores):
  scores = np.exp(scores - scores.max())
  return scores / scores.sum()


def experts(bank, ranks, values):
  """Output of each expert for one sequence [t d] without padding."""
  width, size = values.shape[1], len(bank["w1"])
  padded = np.pad(values, ((size // 2, size // 2), (0, 0)))
  windows = [padded[step : step + size] for step in range(len(values))]
  biases, start, found = bank["b2"].reshape(len(ranks), width), 0, []
  for rank, bias in zip(ranks, biases, strict=True):
    own = slice(start, start + rank)
    inner = [np.einsum("kd,kdr->r", w, bank["w1"][..., own]) for w in windows]
    hidden = gelu(np.array(inner) + bank["b1"][own])
    found.append(hidden @ bank["w2"][own] + bias)
    start += rank
  return found


def encode(tower, values, tasks, options):
  """One sequence's streams, one for each task, and the routers' weights."""
  hidden = options["hidden_dim"]
  if values.shape[1] != hidden:
    values = norm(tower["adapter_norm"], dense(tower["adapter"], values))
  hard = options["sharing"] == "hard"
  streams = {name: values for name in (("shared",) if hard else tasks)}
  shared, own = options["shared_ranks"], (options["task_rank"],)
  if options["full_rank"]:
    shared, own = (hidden,) * len(shared), (hidden,)
  weights = {}
  for number in range(options["num_blocks"]):
    block = tower[f"block_{number}"]
    for name, stream in streams.items():
      normalised, outputs = norm(block[f"norm_{name}"], stream), []
      if options["sharing"] != "specific":
        outputs += experts(tower[f"shared_{number}"], shared, normalised)
      if not hard:
        outputs += experts(block[f"expert_{name}"], own, normalised)
      router = block[f"router_{name}"]["logits"]
      gates = softmax(dense(router, normalised.mean(axis=0)))
      weights[number, name] = gates
      added = sum(g * o for g, o in zip(gates, outputs, strict=True))
      streams[name] = stream + added
  return {task: streams["shared" if hard else task] for task in tasks}, weights


def attend(params, values, source, heads):
  query, keys = norm(params["norm_query"], values), norm(params["norm_source"], source)
  parts = params["attention"]
  q, k, v = (
    dense(parts["query"], query),
    *(dense(parts[name], keys) for name in ("key", "value")),
  )
  width, mixed = q.shape[1] // heads, np.zeros_like(q)
  for head in range(heads):
    cut = slice(head * width, (head + 1) * width)
    for step in range(len(q)):
      weights = softmax(k[:, cut] @ q[step, cut] / math.sqrt(width))
      mixed[step, cut] = weights @ v[:, cut]
  return dense(parts["out"], mixed)


def sample(params, sequences, outputs, options):
  """Predictions, betas and router weights of one sample.

  Args:
    sequences: modality -> [t d], its real steps alone; [0 d] if it is missing.
    outputs: task -> number of its units, 0 = a regression.
  """
  order, tasks = list(sequences), list(outputs)
  there = [name for name in order if len(sequences[name])]
  streams, routers = {}, {}
  for name in there:
    streams[name], weights = encode(
      params[f"unitse_{name}"], sequences[name], tasks, options
    )
    routers |= {f"router_{name}_{n}_{s}": g for (n, s), g in weights.items()}
  predictions, betas, fusion = {}, {}, params["fusion"]
  for task in tasks:
    pooled = {}
    for name in there:
      values = streams[name][task]
      if len(order) > 1:
        cross = fusion[f"cross_{name}"]
        others = [streams[other][task] for other in there if other != name]
        if others:
          source = np.concatenate(others)
          values = values + attend(cross, values, source, options["num_heads"])
        hidden = gelu(dense(cross["ffn_1"], norm(cross["norm_ffn"], values)))
        values = values + dense(cross["ffn_2"], hidden)
      pooled[name] = values.mean(axis=0)
    gate, slots = fusion[f"gate_{task}"], [order.index(name) for name in there]
    scores = [pooled[order[m]] @ gate["kernel"][m] + gate["bias"][m] for m in slots]
    beta = np.zeros(len(order))
    beta[slots] = softmax(np.array(scores))
    betas[f"beta_{task}"] = beta
    fused = sum(beta[order.index(name)] * pooled[name] for name in there)
    head = params[f"head_{task}"]
    values = dense(head["out"], gelu(dense(head["hidden"], fused)))
    predictions[task] = values if outputs[task] else values[0]
  return predictions, {**routers, **betas}


CASES = {
  "two blocks of two modalities": {},
  "three modalities": {
    "widths": WIDTHS,
    "modalities": (),
    "num_blocks": 1,
    "num_heads": 4,
    "kernel_size": 5,
    "ffn_dim": 3,
    "head_hidden_dim": 5,
  },
  "hard sharing": {"sharing": "hard", "shared_ranks": (2, 3), "kernel_size": 1},
  "own experts only, one modality": {
    "sharing": "specific",
    "task_rank": 2,
    "widths": {"audio": WIDTHS["audio"]},
    "num_blocks": 1,
  },
  "full rank, wider streams": {"full_rank": True, "hidden_dim": 12, "num_blocks": 1},
  "one task, the other's label ignored": {"tasks": ("emotion",), "num_blocks": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_the_network_equals_a_float64_loop(case):
  changes = dict(CASES[case])
  widths = changes.pop("widths", {name: WIDTHS[name] for name in ("text", "audio")})
  config = tiny.config(widths=widths, **changes)
  params, batch = tiny.variables(config), tiny.batch(widths=widths)
  # The sample that has lost a modality would otherwise have none.
  if len(widths) == 1:
    batch = batch.replace(available=jnp.ones_like(batch.available))
  output = tiny.predict(config)(params, batch)
  wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  known = {"sentiment": (SENTIMENT, 0), "emotion": (EMOTION, 3)}
  tasks = config.model["tasks"] or ("sentiment", "emotion")
  assert set(output.predictions) == set(tasks)
  hidden = hide_unavailable(batch)
  for row in range(5):
    sequences = {
      name: np.asarray(each.features[row], np.float64)[np.asarray(each.mask[row])]
      for name, each in hidden.modalities.items()
    }
    units = {task: known[task][1] for task in tasks}
    predictions, gates = sample(wide, sequences, units, config.model)
    for task, values in predictions.items():
      ours = np.asarray(output.predictions[task][row])
      if task == "emotion":
        assert not ours[:, 0].any()
        ours = ours[:, 1]
      np.testing.assert_allclose(ours, values, atol=2e-4)
    for name, weights in gates.items():
      np.testing.assert_allclose(output.routing[name].probs[row], weights, atol=1e-5)


def test_everything_shared_by_the_tasks_and_nothing_of_their_own_is_compared():
  """The groups of `train.task_cosine`: shared experts, and the cross-attention."""
  params = tiny.variables(tiny.config(widths=WIDTHS, modalities=()))
  groups = {"experts": set(), "fusion": set(), "": set()}
  for path, _ in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(key.key for key in path)
    groups[shared(names)].add("/".join(names[:2]))
  assert groups["experts"] == {
    f"unitse_{name}/shared_{number}" for name in WIDTHS for number in (0, 1)
  }
  assert groups["fusion"] == {f"fusion/cross_{name}" for name in WIDTHS}
  own = {path for path in groups[""] if path.endswith(("_sentiment", "_emotion"))}
  assert own == {f"fusion/gate_{task}" for task in tiny.TASKS}
  blocks = {f"unitse_{name}/block_{number}" for name in WIDTHS for number in (0, 1)}
  heads = {f"head_{task}/{layer}" for task in tiny.TASKS for layer in ("hidden", "out")}
  rest = groups[""] - own - blocks - heads
  assert rest == {
    f"unitse_{name}/{part}"
    for name in ("audio", "vision")  # text is as wide as the streams
    for part in ("adapter", "adapter_norm")
  }
