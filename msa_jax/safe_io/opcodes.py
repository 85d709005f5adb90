"""A pass over a pickle's opcodes before the unpickler sees them.

The unpickler is written in C and trusts sizes: nine bytes that name a high place in its
memo take gigabytes, and a tuple in a tuple, a million deep, is hashed by recursion when
it becomes a key, and ends the interpreter. This pass follows the machine's stack by
what kind its items are, and refuses a stream before any object of it is made.
"""

import pickletools
from collections.abc import Callable
from typing import Any

from msa_jax.errors import UserError

MAX_DEPTH = 64  # containers in one another; readers of data need four or five
_MAX_OPCODES = 2**26
# Kinds of items. An item is an integer, 8 * depth + kind.
_LEAF, _LIST, _DICT, _SET, _TUPLE, _BYTEARRAY, _MADE = range(7)

# Bytes of argument after the opcode, where they are fixed; how the length of an
# argument is written, where it is not.
_FIXED = {"BININT": 4, "BININT1": 1, "BININT2": 2, "BINFLOAT": 8}
_FIXED |= {"PROTO": 1, "BINPUT": 1, "LONG_BINPUT": 4, "BINGET": 1, "LONG_BINGET": 4}
_COUNTED = {"SHORT_BINSTRING": 1, "SHORT_BINBYTES": 1, "SHORT_BINUNICODE": 1}
_COUNTED |= {"LONG1": 1, "BINSTRING": 4, "LONG4": 4, "BINBYTES": 4, "BINUNICODE": 4}
_COUNTED |= {"BINUNICODE8": 8, "BINBYTES8": 8, "BYTEARRAY8": 8}
_LINES = {name: 1 for name in ("STRING", "UNICODE", "INT", "LONG", "FLOAT", "PERSID")}
_LINES |= {"PUT": 1, "GET": 1, "GLOBAL": 2, "INST": 2}
_SIGNED = ("BINSTRING", "LONG4")
_REFUSED = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")


class _Damaged(Exception):
  """The stream is no pickle, or a cut one."""


class _Machine:
  """The unpickler's stack, marks and memo, with kinds and depths in place of objects.

  Attributes:
    stack: items; marks: their number at each open mark; memo: place -> item.
    count: opcodes so far.
  """

  def __init__(self):
    self.stack: list[int] = []
    self.marks: list[int] = []
    self.memo: dict[int, int] = {}
    self.count = 0

  def pop(self) -> int:
    # Like the unpickler: nothing below an open mark may be taken.
    if len(self.stack) <= (self.marks[-1] if self.marks else 0):
      raise _Damaged("its stack is empty")
    return self.stack.pop()

  def pop_to_mark(self) -> list[int]:
    if not self.marks:
      raise _Damaged("a mark lacks")
    start = self.marks.pop()
    items = self.stack[start:]
    del self.stack[start:]
    return items

  def top(self, *kinds: int) -> int:
    item = self.pop()
    self.stack.append(item)
    if kinds and item & 7 not in kinds:
      raise UserError("refused to change what is no list, dict or set")
    return item

  def push(self, kind: int, items: list[int] | tuple[int, ...] = ()) -> None:
    depth = 1 + max([item >> 3 for item in items], default=0)
    if depth > MAX_DEPTH:
      raise UserError(f"refused containers nested over {MAX_DEPTH} deep")
    self.stack.append(8 * depth + kind)

  def extend(self, items: list[int], *kinds: int) -> None:
    """Puts items into the container on top, which gets as deep as they are."""
    target = self.top(*kinds)
    depth = 1 + max([item >> 3 for item in items], default=0)
    if depth > MAX_DEPTH:
      raise UserError(f"refused containers nested over {MAX_DEPTH} deep")
    if depth > target >> 3 and target & 7 != _MADE:
      self.stack[-1] = 8 * depth + (target & 7)

  def remember(self, place: int) -> None:
    # Writers number what they remember, and each took an opcode to make.
    if not 0 <= place <= self.count:
      raise UserError(
        f"refused place {place} of the memo after {self.count} opcodes: no writer does"
      )
    self.memo[place] = self.top()

  def recall(self, place: int) -> None:
    if place not in self.memo:
      raise _Damaged(f"nothing is at place {place} of its memo")
    self.stack.append(self.memo[place])


def _check_keys(items: list[int], what: str = "a key") -> None:
  """Keys are hashed, tuples by recursion; no data has tuples or sets as keys."""
  for item in items:
    if item & 7 in (_TUPLE, _SET):
      raise UserError(f"refused {what} of other things than strings and numbers")


def _pairs(items: list[int]) -> list[int]:
  if len(items) % 2:
    raise _Damaged("a key has no value")
  _check_keys(items[::2])
  return items


def _pop(m: _Machine) -> None:
  # A mark on top of the stack is popped like an item.
  if m.marks and m.marks[-1] == len(m.stack):
    m.marks.pop()
  else:
    m.pop()


def _replace(count: int) -> Callable[[_Machine], None]:
  """Takes items and gives what a call makes of them."""

  def act(m: _Machine) -> None:
    for _ in range(count):
      m.pop()
    m.stack.append(_MADE)

  return act


def _made_of_mark(m: _Machine) -> None:
  m.pop_to_mark()
  m.stack.append(_MADE)


def _tuple(count: int) -> Callable[[_Machine], None]:
  return lambda m: m.push(_TUPLE, [m.pop() for _ in range(count)])


def _set_item(m: _Machine) -> None:
  value, key = m.pop(), m.pop()
  m.extend(_pairs([key, value]), _DICT, _MADE)


def _add_items(m: _Machine) -> None:
  items = m.pop_to_mark()
  _check_keys(items, "a set")
  m.extend(items, _SET, _MADE)


def _frozen_set(m: _Machine) -> None:
  items = m.pop_to_mark()
  _check_keys(items, "a set")
  m.push(_SET, items)


def _build(m: _Machine) -> None:
  m.pop()
  m.top(_MADE)


_ACTIONS: dict[str, Callable[[_Machine], Any]] = {
  "MARK": lambda m: m.marks.append(len(m.stack)),
  "POP": _pop,
  "POP_MARK": lambda m: m.pop_to_mark(),
  "DUP": lambda m: m.stack.append(m.top()),
  "EMPTY_LIST": lambda m: m.stack.append(8 + _LIST),
  "EMPTY_DICT": lambda m: m.stack.append(8 + _DICT),
  "EMPTY_SET": lambda m: m.stack.append(8 + _SET),
  "EMPTY_TUPLE": lambda m: m.stack.append(8 + _TUPLE),
  "LIST": lambda m: m.push(_LIST, m.pop_to_mark()),
  "TUPLE": lambda m: m.push(_TUPLE, m.pop_to_mark()),
  "DICT": lambda m: m.push(_DICT, _pairs(m.pop_to_mark())),
  "FROZENSET": _frozen_set,
  "TUPLE1": _tuple(1),
  "TUPLE2": _tuple(2),
  "TUPLE3": _tuple(3),
  "APPEND": lambda m: m.extend([m.pop()], _LIST, _MADE),
  "APPENDS": lambda m: m.extend(m.pop_to_mark(), _LIST, _MADE),
  "SETITEM": _set_item,
  "SETITEMS": lambda m: m.extend(_pairs(m.pop_to_mark()), _DICT, _MADE),
  "ADDITEMS": _add_items,
  "GLOBAL": lambda m: m.stack.append(_MADE),
  "PERSID": lambda m: m.stack.append(_MADE),
  "BINPERSID": _replace(1),
  "STACK_GLOBAL": _replace(2),
  "REDUCE": _replace(2),
  "NEWOBJ": _replace(2),
  "NEWOBJ_EX": _replace(3),
  "INST": _made_of_mark,
  "OBJ": _made_of_mark,
  "BUILD": _build,
  "MEMOIZE": lambda m: m.remember(len(m.memo)),
  "PROTO": lambda m: None,
}
_LEAVES = ("NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "FLOAT", "STRING", "UNICODE")
_LEAVES += ("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "LONG4", "BINSTRING")
_LEAVES += ("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINUNICODE")
_LEAVES += ("SHORT_BINUNICODE", "BINUNICODE8")
_ACTIONS |= {name: lambda m: m.stack.append(_LEAF) for name in _LEAVES}
_ACTIONS["BYTEARRAY8"] = lambda m: m.stack.append(_BYTEARRAY)
_PLACES = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


def _table() -> dict[int, tuple[Any, ...]]:
  """Opcode -> name, fixed bytes, bytes of a length, whether it is signed, lines,
  what it does to the machine."""
  table = {}
  for opcode in pickletools.opcodes:
    name = opcode.name
    sizes = (_FIXED.get(name, 0), _COUNTED.get(name, 0), name in _SIGNED)
    action = _ACTIONS.get(name)
    table[ord(opcode.code)] = (name, *sizes, _LINES.get(name, 0), action)
  return table


_TABLE = _table()


def check(content: Any) -> None:
  """Checks a pickle's opcodes; makes nothing.

  Args:
    content: bytes or a map of a file.

  Raises:
    UserError: cut short or no pickle, an argument longer than the stream, a place in
      the memo that no writer uses, containers over `MAX_DEPTH` deep, keys other than
      strings and numbers, or the content of a buffer changed.
  """
  try:
    _run(content, _Machine())
  except _Damaged as error:
    raise UserError(f"not a readable pickle, perhaps truncated ({error})") from None


def _run(content: Any, machine: _Machine) -> None:
  position, size, frame = 0, len(content), 0
  while position < size:
    name, fixed, counted, signed, lines, action = _known(content[position])
    start = position = position + 1
    machine.count += 1
    if counted:
      head = content[position : position + counted]
      length = int.from_bytes(head, "little", signed=signed)
      if length < 0 or len(head) < counted:
        raise _Damaged("an argument has no length")
      position += counted + length
    elif lines:
      for _ in range(lines):
        position = content.find(b"\n", position) + 1
        if not position:
          raise _Damaged("a line has no end")
    else:
      position += fixed + 8 * (name == "FRAME")
    # The unpickler reads frames whole, and drops the rest of one that an argument
    # crosses: it would see another stream than this pass.
    if position > size or start <= frame < position:
      raise _Damaged("an argument is longer than the stream or its frame")
    if action is not None:
      action(machine)
    elif name == "FRAME":
      length = int.from_bytes(content[start:position], "little")
      if start <= frame or position + length > size:
        raise _Damaged("a frame is longer than the stream")
      frame = position + length
    elif name == "STOP":
      machine.pop()
      return
    elif name in _PLACES[0]:
      machine.remember(_place(content[start:position], name))
    elif name in _PLACES[1]:
      machine.recall(_place(content[start:position], name))
    else:
      raise UserError(f"refused the opcode {name}: no data is written so")
    if machine.count > _MAX_OPCODES:
      raise UserError(f"refused a pickle of over {_MAX_OPCODES} opcodes")
  raise _Damaged("it has no end")


def _known(opcode: int) -> tuple[Any, ...]:
  if opcode not in _TABLE:
    raise _Damaged(f"opcode {opcode:#04x} is unknown")
  return _TABLE[opcode]


def _place(argument: bytes, name: str) -> int:
  if name in _LINES:
    if not argument.strip().isdigit() or len(argument) > 20:
      raise _Damaged("a place of its memo is no number")
    return int(argument)
  return int.from_bytes(argument, "little")
