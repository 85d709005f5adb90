"""A request to stop that comes by itself."""

from msa_jax.devices.stopping import StopRequest


class StopAt(StopRequest):
  """Comes when the loop asks for the `calls`-th time."""

  def __init__(self, calls):
    super().__init__()
    self._left = calls

  def requested(self):
    self._left -= 1
    return self._left == 0
