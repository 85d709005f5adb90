"""How a command's process is prepared."""

import os

import jax

from msa_jax.devices import compilation


def test_several_devices_of_a_cpu_have_threads_to_spare(monkeypatch):
  monkeypatch.setenv("NPROC", "7")
  compilation.spare_threads()
  assert os.environ["NPROC"] == "7"  # what the user has set stays
  monkeypatch.delenv("NPROC")
  compilation.spare_threads()
  devices = jax.config.jax_num_cpu_devices
  assert devices == 4  # of the tests
  assert int(os.environ["NPROC"]) == max(devices, os.cpu_count()) + devices
  monkeypatch.delenv("NPROC")
  with monkeypatch.context() as patch:
    patch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=900")
    compilation.spare_threads()
    assert os.environ["NPROC"] == "1800"


def test_one_device_has_the_pool_as_it_is(monkeypatch):
  monkeypatch.setattr(compilation.jax, "config", _Config())
  monkeypatch.delenv("NPROC", raising=False)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  compilation.spare_threads()
  assert "NPROC" not in os.environ


class _Config:
  jax_num_cpu_devices = -1  # JAX's own default
