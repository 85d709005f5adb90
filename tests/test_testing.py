"""The contract tests pass a sound system, and name what an unsound one does."""

import own_model
import pytest

from msa_jax import models, testing
from msa_jax.errors import UserError


@pytest.mark.parametrize("kind", ["regression", "classes", "binary"])
def test_a_sound_system_passes_for_every_kind_of_label(kind):
  testing.check_system(
    own_model.Mine, {"width": 4}, spec=testing.example_spec(kind=kind)
  )
  assert testing._NAME not in models.SYSTEMS


@pytest.mark.parametrize(
  ("leak", "message"),
  [
    ("padding", "padding changes no prediction: .*sentiment.* differs by"),
    ("ids", "absent content .* has no influence: .*sentiment.* differs by"),
    ("rows", "does not depend on the other rows"),
    ("labels", "do not depend on labels"),
    ("blind", "they depend on no modality"),
    ("idle", r"every parameter has a gradient .*: none in three steps: idle"),
    ("filler", "means over the real rows"),
    ("infinite", "predictions are finite"),
    ("shape", r"has shape \(7, 1\), not \(7,\)"),
  ],
)
def test_what_an_unsound_system_does_is_named(leak, message):
  with pytest.raises(AssertionError, match=message):
    testing.check_system(own_model.Mine, {"width": 4, "leak": leak}, loss={"size": 0.1})
  assert testing._NAME not in models.SYSTEMS


def test_parameters_that_need_not_learn_are_named_by_the_caller():
  testing.check_system(own_model.Mine, {"width": 4, "leak": "idle"}, unused=["idle"])


def test_options_that_a_system_refuses_are_the_callers_error():
  with pytest.raises(UserError, match="no such option"):
    testing.check_system(own_model.Mine, {"depth": 4})


def test_systems_of_the_library_keep_the_contract_too():
  options = {"hidden_dims": {"text": 4, "audio": 4, "vision": 4}, "text_dim": 4}
  testing.check_system(models.get("lf_dnn"), {**options, "post_dim": 4})
