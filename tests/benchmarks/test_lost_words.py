"""The comparison of three ways to lose words."""

import numpy as np
import tiny_text
from sklearn.linear_model import Ridge

from benchmarks import lost_words


def test_ridge_is_that_of_scikit_learn_on_standardised_columns():
  random = np.random.default_rng(0)
  x, y = random.normal(2.0, 3.0, (40, 6)), random.normal(1.0, 1.0, 40)
  mean, scale, weights, intercept = lost_words.ridge((x, y), 7.0)
  fitted = Ridge(alpha=7.0).fit((x - x.mean(0)) / x.std(0), y)
  np.testing.assert_allclose(weights, fitted.coef_, atol=1e-5)
  np.testing.assert_allclose(intercept, fitted.intercept_, rtol=1e-6)
  np.testing.assert_allclose((mean, scale), (x.mean(0), x.std(0)), rtol=1e-4)


def test_the_ways_agree_where_nothing_is_lost_and_differ_where_words_are(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  encoder = tiny_text.folder(tmp_path / "bert")
  random = np.random.default_rng(0)
  words = ["a", "bad", "good", "film", "great", "not"]
  lines = ["id,text,label,mode"]
  for name, count in (("train", 20), ("valid", 8), ("test", 12)):
    for row in range(count):
      text = " ".join(random.choice(words, 5))
      lines.append(f"{name}{row},{text},{random.uniform(-3, 3):.2f},{name}")
  (tmp_path / "c.csv").write_text("\n".join(lines) + "\n")
  monkeypatch.setattr(lost_words, "RATES", (0.5,))
  found = lost_words.measure(str(tmp_path / "c.csv"), encoder, "complete", 2)
  assert set(found) == {(way, r) for way in lost_words.WAYS for r in (0.0, 0.5)}
  complete = {tuple(found[way, 0.0]) for way in lost_words.WAYS}
  assert len(complete) == 1
  assert len({tuple(found[way, 0.5]) for way in lost_words.WAYS}) == 3
  table = lost_words.table(found).splitlines()
  assert table[0] == "| words lost | 0 | 0.5 |"
  assert table[2] == "| `features:R` | {:.3f} | {:.3f} |".format(
    *(np.mean(found["features", rate]) for rate in (0.0, 0.5))
  )
  lost_words.draw(found, tmp_path / "picture")
  assert (tmp_path / "picture.svg").stat().st_size > 1000
