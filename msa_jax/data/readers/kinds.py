"""Names files that are no corpus: media, documents, other programs' archives."""

from pathlib import Path

from msa_jax.errors import UserError

# (offset, first bytes) -> what the file is.
_MARKS = {
  (8, b"WAVE"): "a WAV recording",
  (8, b"AVI "): "an AVI video",
  (4, b"ftyp"): "an MP4 or MOV clip",
  (0, b"\x1a\x45\xdf\xa3"): "a Matroska or WebM clip",
  (0, b"ID3"): "an MP3 recording",
  (0, b"fLaC"): "a FLAC recording",
  (0, b"OggS"): "an Ogg recording",
  (0, b"\x89PNG"): "a PNG picture",
  (0, b"\xff\xd8\xff"): "a JPEG picture",
  (0, b"GIF8"): "a GIF picture",
  (0, b"%PDF"): "a PDF document",
  (0, b"\x89HDF"): "an HDF5 file (as .csd of the CMU-Multimodal SDK)",
  (0, b"\x93NUMPY"): "a single NumPy array (.npy)",
  (0, b"\x1f\x8b"): "a gzip archive",
  (0, b"7z\xbc\xaf"): "a 7z archive",
  (0, b"Rar!"): "a RAR archive",
  (0, b"BZh"): "a bzip2 archive",
  (0, b"SQLite format 3"): "an SQLite database",
  (0, b"PAR1"): "a Parquet table",
}
READABLE = (
  "an MMSA, MulT or GCNet pickle, an .npz file, a csv file of transcripts, or a folder"
  " made by `python -m msa_jax.data store`"
)
_OF_CLIPS = " `python -m msa_jax.data clips` makes one of a folder of clips."
_LOOKED_AT = 512
_FIRST = tuple(bytes([each]) for each in b"(cSVILFNltd]})")


def refuse_others(path: Path) -> None:
  """Refuses a file that is plainly no pickle: by its first bytes, or as text.

  Args:
    path: of a file that is neither an archive of arrays nor a csv file.

  Raises:
    UserError: naming what the file is and what can be read.
  """
  with path.open("rb") as stream:
    head = stream.read(_LOOKED_AT)
  for (offset, mark), kind in _MARKS.items():
    if head[offset : offset + len(mark)] == mark:
      hint = _OF_CLIPS if kind.endswith(("recording", "video", "clip")) else ""
      raise UserError(f"{path}: {kind} is no corpus; it must be {READABLE}.{hint}")
  # Pickles of protocol 0 are text too: a value first, a full stop last.
  if _is_text(head) and not (
    head[:1] in _FIRST and path.read_bytes().rstrip().endswith(b".")
  ):
    raise UserError(f"{path}: a text file is no corpus; it must be {READABLE}.")


def _is_text(head: bytes) -> bool:
  try:
    text = head.decode()
  except UnicodeDecodeError as error:
    if error.start < len(head) - 4:  # not a character cut in two
      return False
    text = head[: error.start].decode()
  return bool(text) and all(each.isprintable() or each in "\t\r\n" for each in text)
