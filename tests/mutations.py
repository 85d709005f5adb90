"""Changes of the library that a test must notice, tried one at a time.

  python tests/mutations.py                     # all; some 20 seconds each
  python tests/mutations.py --only=hgem         # those whose names contain a word
  python tests/mutations.py --list

Not part of the suite. Each mutation is applied to a copy of the tree, the tests named
with it run, and one line says whether they fail (`caught`) or pass (`SURVIVES`). Ends
with 1 if one survives, no longer applies or breaks the tests' own machinery.

Some faults cannot be put back, for the options are gone that they were about: H-GEM's
`gate0.apply=input`, MMoLRE's `residual`, `query`, `shared_only` and `concat` as flags.
What these did is mutated in place.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
_COPIED = ("msa_jax", "configs", "tests", "setup.cfg", "pyproject.toml")


class Mutation(NamedTuple):
  """One change.

  Attributes:
    name: what it does.
    file: below msa_jax.
    old, new: text, wherever it occurs in the file.
    tests: what must notice, as arguments of pytest.
  """

  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]


SITES = "tests/models/test_dropout_sites.py"
HGEM = "tests/models/hgem/"
MMOLRE = "tests/models/mmolre/"
DERL = "tests/models/derl/"
MOMKE = "tests/models/momke/"
AWF = "tests/models/late_fusion/test_awf.py"
BALANCE = "tests/step/balance/"


def _sites(system: str) -> tuple[str, ...]:
  return (SITES, "-k", f"{system}-")


DROPOUT = [
  Mutation(
    "hgem: no dropout at all",
    "models/hgem/network.py",
    '"deterministic": not train',
    '"deterministic": True',
    _sites("hgem"),
  ),
  Mutation(
    "hgem: no dropout of the LSTM's states",
    "models/hgem/experts.py",
    "    states = Dropout(self.dropout, self.deterministic)(states)\n",
    "",
    _sites("hgem"),
  ),
  Mutation(
    "momke: no dropout at all",
    "models/momke/network.py",
    "deterministic=not train",
    "deterministic=True",
    _sites("momke"),
  ),
  Mutation(
    "momke: no dropout of the routers' logits",
    "models/momke/experts.py",
    'Dropout(self.logit_dropout, self.deterministic, name="drop_logits")(logits)',
    "logits",
    _sites("momke"),
  ),
  Mutation(
    "mmolre: no dropout at all",
    "models/mmolre/network.py",
    "not train",
    "True",
    _sites("mmolre"),
  ),
  Mutation(
    "derl: no dropout of what attention adds",
    "models/derl/parts.py",
    "    added = Dropout(self.residual_dropout, self.deterministic)(added)\n",
    "",
    _sites("derl"),
  ),
  Mutation(
    "derl: the rates of attention and of the feed-forward part change places",
    "models/derl/network.py",
    "attention_dropout=self.dropout.attention",
    "attention_dropout=self.dropout.ffn",
    _sites("derl"),
  ),
  Mutation(
    "late fusion: no dropout before the head",
    "models/late_fusion/encoders.py",
    "    values = Dropout(self.dropout, not train)(values)\n    for index",
    "    for index",
    _sites("awf"),
  ),
]

GATES = [
  Mutation(
    "hgem: Gate 0's scale is not used",
    "models/hgem/network.py",
    'scale = first.scale if self.gates.modality_scale == "tokens" else None',
    "scale = None",
    (HGEM + "test_gates.py", "-k", "moves or scaled"),
  ),
  Mutation(
    "hgem: Gate 0's scale comes before the norm of Gate 1's units",
    "models/hgem/gates.py",
    "      hidden = hidden * scale[:, None]\n",
    '      hidden = nn.LayerNorm(name="again")(hidden * scale[:, None])\n',
    (HGEM + "test_gates.py", "-k", "reads"),
  ),
  Mutation(
    "hgem: Gate 1 reads what comes before the adapter",
    "models/hgem/fusion_layer.py",
    "    if self.routes_tokens:\n",
    "    if False:\n",
    (HGEM + "test_gates.py", "-k", "reads"),
  ),
  Mutation(
    "hgem: Gate 1 reads the embeddings",
    "models/hgem/network.py",
    '        tokens, routing["gate0"] = first.hidden, first.routing\n',
    '        routing["gate0"] = first.routing\n',
    (HGEM + "test_gates.py", "-k", "embeddings"),
  ),
  Mutation(
    "hgem: Gate 2 is its first unit",
    "models/hgem/gates.py",
    "      scores = bank(views)  # [m b e]\n",
    "      scores = jnp.broadcast_to(bank(views)[:1], (3, *bank(views).shape[1:]))\n",
    (HGEM + "test_gates.py", "-k", "units"),
  ),
  Mutation(
    "hgem: Gate 3 forgets the prior",
    "models/hgem/gates.py",
    "  corrected = prior.logits + jnp.where(selected, scores, 0.0)\n",
    "  corrected = jnp.where(selected, scores, 0.0)\n",
    (HGEM + "test_parts.py", "-k", "gate_three"),
  ),
  Mutation(
    "hgem: the balance loss counts fillers and empty rows",
    "models/hgem/system.py",
    'output.routing["gate1"], batch.sample_mask & has_content(batch)',
    'output.routing["gate1"], None',
    (HGEM + "test_losses.py",),
  ),
  Mutation(
    "hgem: route losses count rows without content",
    "models/hgem/system.py",
    "label.mask & batch.sample_mask & has_content(batch)",
    "label.mask & batch.sample_mask",
    (HGEM + "test_losses.py",),
  ),
]

FUSION = [
  Mutation(
    "hgem: the robust expert blends clean content",
    "models/hgem/fusion.py",
    "confidence * corrupted",
    "confidence * tokens",
    (HGEM + "test_parts.py", "-k", "noise"),
  ),
  Mutation(
    "hgem: no noise",
    "models/hgem/fusion.py",
    "corrupted = tokens + jnp.where(slots, noise, 0.0)",
    "corrupted = tokens",
    (HGEM + "test_parts.py", "-k", "noise"),
  ),
  Mutation(
    "hgem: slots are dropped from the content too",
    "models/hgem/fusion.py",
    "    return corrupted, jnp.where(lost[:, None, :, None], 0.0, corrupted)\n",
    "    return (jnp.where(lost[:, None, :, None], 0.0, corrupted),) * 2\n",
    (HGEM + "test_parts.py", "-k", "noise"),
  ),
  Mutation(
    "hgem: the denoising loss trains what it reads",
    "models/hgem/fusion.py",
    "denoise(jax.lax.stop_gradient(visible))",
    "denoise(visible)",
    (HGEM + "test_network.py", "-k", "denoiser_alone"),
  ),
  Mutation(
    "hgem: summaries are not normalised",
    "models/hgem/fusion.py",
    "masked_mean(norm(projected), real, axis=1)",
    "masked_mean(projected + 0 * norm(projected), real, axis=1)",
    (HGEM + "test_parts.py", "-k", "summaries"),
  ),
  Mutation(
    "hgem: a share of the nominal keys in place of the valid ones",
    "layers/attention.py",
    "[jnp.sum(key_mask, axis=-1)]",
    "[jnp.full(len(key_mask), logits.shape[-1])]",
    ("tests/layers/test_attention.py", "-k", "share"),
  ),
  Mutation(
    "attention: a share is rounded up in floats",
    "layers/attention.py",
    "math.ceil(fractions.Fraction(str(float(fraction))) * number)",
    "math.ceil(fraction * number)",
    ("tests/layers/test_attention.py", "-k", "share"),
  ),
]

OTHERS = [
  Mutation(
    "mmolre: no residual",
    "models/mmolre/unitse.py",
    "outputs.append(values + Dropout(self.dropout, self.deterministic)(mixed))",
    "outputs.append(Dropout(self.dropout, self.deterministic)(mixed))",
    (MMOLRE + "test_oracle.py",),
  ),
  Mutation(
    "mmolre: hard sharing keeps experts of its own",
    "models/mmolre/network.py",
    "own_ranks=() if hard else own",
    "own_ranks=own",
    (MMOLRE + "test_oracle.py", "-k", "hard"),
  ),
  Mutation(
    "mmolre: own experts only is ignored",
    "models/mmolre/network.py",
    'shared_ranks=() if self.sharing == "specific" else shared',
    "shared_ranks=shared",
    (MMOLRE + "test_oracle.py", "-k", "own"),
  ),
  Mutation(
    "mmolre: queries are not normalised",
    "models/mmolre/fusion.py",
    'self._norm("query", values)',
    'values + 0 * self._norm("query", values)',
    (MMOLRE + "test_oracle.py", "-k", "three"),
  ),
  Mutation(
    "mmolre: the fused vector is the first modality's",
    "models/mmolre/fusion.py",
    'jnp.einsum("bm,bmd->bd", routing.combine, pooled), routing',
    "pooled[:, 0], routing",
    (MMOLRE + "test_oracle.py", "-k", "two"),
  ),
  Mutation(
    "mmolre: attention of nothing adds its bias",
    "models/mmolre/fusion.py",
    "jnp.where(some, attended, 0.0)",
    "attended",
    (MMOLRE + "test_oracle.py", "-k", "two"),
  ),
  Mutation(
    "mmolre: tasks' own parameters count as shared",
    "models/mmolre/system.py",
    'path[1].startswith("shared_")',
    'path[1].startswith(("shared_", "block_"))',
    (MMOLRE + "test_oracle.py", "-k", "shared_by"),
  ),
  Mutation(
    "momke: carry_opt_state is ignored",
    "models/momke/system.py",
    "carry_opt_state=plan.carry_opt_state and after",
    "carry_opt_state=False",
    (MOMKE + "test_stages.py", "-k", "share_the_epochs"),
  ),
  Mutation(
    "momke: own experts are another modality's",
    "models/momke/experts.py",
    "own = jnp.eye(weights.shape[-1], dtype=weights.dtype)[:, None, None]",
    "own = jnp.eye(weights.shape[-1], dtype=weights.dtype)[::-1, None, None]",
    (MOMKE + "test_network.py", "-k", "own_experts"),
  ),
  Mutation(
    "momke: a missing modality's mixture is kept",
    "models/momke/blocks.py",
    "    mixed = jnp.where(mask[..., None], mixed, 0.0)\n",
    "",
    (MOMKE + "test_network.py", "-k", "empty_residual"),
  ),
  Mutation(
    "derl: the filter unit's gate is the other way round",
    "models/derl/parts.py",
    "gate * private + (1 - gate) * common",
    "gate * common + (1 - gate) * private",
    (DERL + "test_parts.py", "-k", "filter"),
  ),
  Mutation(
    "derl: keys of the enhancement map keep their length",
    "models/derl/parts.py",
    "  keys = product * jax.lax.rsqrt(square + 1e-6)\n",
    "  keys = product\n",
    (DERL + "test_parts.py", "-k", "enhancement"),
  ),
  Mutation(
    "awf: attention trains the unimodal networks",
    "models/late_fusion/awf.py",
    "stacked = lax.stop_gradient(",
    "stacked = (",
    (AWF, "-k", "does_not_train"),
  ),
  Mutation(
    "awf: an absent modality has attention",
    "models/late_fusion/awf.py",
    "    return jnp.where(present, weights, 0.0)\n",
    "    return weights\n",
    (AWF, "-k", "absent"),
  ),
  Mutation(
    "awf: the loss ignores g_ema",
    "step/balance/recipe.py",
    "[1]) if decay else None",
    "[1]) if decay < 0 else None",
    (BALANCE + "test_recipe.py", "-k", "smoothed"),
  ),
  Mutation(
    "awf: omega_norm=sum3 leaves the clip",
    "step/balance/omega.py",
    "proposed = scaled(jnp.interp(rest, sums, ends))",
    "proposed = proposed * rest / jnp.sum(jnp.where(seen, proposed, 0.0))",
    (BALANCE + "test_omega.py", "-k", "sum3"),
  ),
  Mutation(
    "batches: every row of a training batch draws for itself",
    "step/recipe.py",
    "jnp.broadcast_to(jax.random.uniform(of_batch, shape[-1:]), shape)",
    "jax.random.uniform(of_batch, shape)",
    ("tests/runs/test_missing.py", "-k", "place_in_the_epoch"),
  ),
  Mutation(
    "batches: every row of a split draws for itself",
    "data/missing/sampling.py",
    '  names = [f"batch {number}" for number in range(n_batches)]\n',
    "  names, position = list(split.ids), np.arange(len(split))\n",
    ("tests/data/missing/test_patterns.py", "-k", "share_their_pattern"),
  ),
  Mutation(
    "absent content: lost steps keep it",
    "layers/masking.py",
    "visible = mask & ~lost",
    "visible = mask",
    ("tests/layers/test_masking.py",),
  ),
  Mutation(
    "prior: rows without content keep the network's prediction",
    "step/recipe.py",
    "jnp.where(shown, value, prior)",
    "jnp.where(shown | True, value, prior)",
    ("tests/runs/test_missing.py", "-k", "prior"),
  ),
  Mutation(
    "route losses: a row is compared with itself",
    "losses/routing.py",
    "jnp.where(real, size - 1.0, 0.0)",
    "jnp.where(real, size, 0.0)",
    ("tests/losses/test_routing.py", "-k", "discriminat"),
  ),
  Mutation(
    "recurrent: padding moves the state",
    "layers/kernels/recurrence.py",
    "    cell = jnp.where(here, new_cell, cell)\n",
    "    cell = new_cell\n",
    ("tests/layers/test_recurrent.py",),
  ),
  Mutation(
    "mean of the parameters: the newest alone",
    "step/ema.py",
    "(mean + (1.0 - kept) * (new - mean))",
    "(mean + (new - mean))",
    ("tests/step/test_ema.py",),
  ),
]

MUTATIONS = [*DROPOUT, *GATES, *FUSION, *OTHERS]


def copy_tree(folder: pathlib.Path) -> None:
  """Copies what tests need."""
  ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache")
  for name in _COPIED:
    source = ROOT / name
    if source.is_dir():
      shutil.copytree(source, folder / name, ignore=ignored)
    else:
      shutil.copy(source, folder / name)


def run_tests(folder: pathlib.Path, tests: tuple[str, ...]) -> tuple[int, str]:
  """Exit code and output of pytest in the copy."""
  command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "--no-header", *tests]
  paths = [str(folder), os.environ.get("PYTHONPATH", "")]
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    "PYTHONDONTWRITEBYTECODE": "1",
  }
  done = subprocess.run(
    command, cwd=folder, env=environment, capture_output=True, text=True, check=False
  )
  return done.returncode, done.stdout + done.stderr


def verdict(mutation: Mutation, folder: pathlib.Path) -> str:
  """Tries a mutation: `caught`, `SURVIVES`, or what went wrong."""
  path = folder / "msa_jax" / mutation.file
  original = path.read_text()
  if mutation.old not in original:
    return f"NO LONGER APPLIES: {mutation.file} has changed"
  path.write_text(original.replace(mutation.old, mutation.new))
  try:
    code, output = run_tests(folder, mutation.tests)
  finally:
    path.write_text(original)
  if code == 1:
    return "caught"
  if code == 0:
    return "SURVIVES"
  lines = output.strip().splitlines() or [""]
  return f"BROKEN: pytest ended with {code}: {lines[-1]}"


def main() -> int:
  """Runs the chosen mutations; 0 = all caught."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
  parser.add_argument("--only", default="", help="part of the names to run")
  parser.add_argument("--list", action="store_true", help="print names and stop")
  parser.add_argument("--plain", action="store_true", help="their tests, unmutated")
  options = parser.parse_args()
  chosen = [each for each in MUTATIONS if options.only in each.name]
  if options.list:
    print(*(each.name for each in chosen), sep="\n")
    return 0
  worst = 0
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    copy_tree(folder)
    if options.plain:
      files = dict.fromkeys(each.tests[0] for each in chosen)
      code, output = run_tests(folder, tuple(files))
      print(output)
      return code
    for mutation in chosen:
      start = time.monotonic()
      found = verdict(mutation, folder)
      worst = max(worst, found != "caught")
      print(f"{found:9} {time.monotonic() - start:4.0f} s  {mutation.name}", flush=True)
  return int(worst)


if __name__ == "__main__":
  sys.exit(main())
