"""The PyTorch side of the comparison; a script of its own, so that the two libraries
need not share an environment or a process: `python torch_steps.py --repeats=5`.

Prints one JSON object, case -> seconds of a training step (forward, backward, Adam).
"""

import argparse
import json
import statistics
import time

# Sizes of both sides. Full padding: every step is computed.
CASES = {
  "lstm": {"batch": 32, "steps": 50, "width": 768, "hidden": 128},
  "transformer": {"batch": 32, "steps": 50, "width": 256, "heads": 8, "ffn": 1024},
  "tfn": {"batch": 32, "steps": 50, "audio": 32, "text_out": 32, "post": 64},
  "lf_dnn": {"batch": 128, "steps": 50, "audio": 16, "text_out": 256, "post": 128},
  "encoder": {"batch": 32, "steps": 50, "layers": 6, "heads": 12, "ffn": 1536},
}
WIDTHS = {"text": 768, "audio": 5, "vision": 20}
HIDDEN = 128  # of the text's LSTM and the vision network
DROPOUT = 0.2
# Of the fine-tuned encoder: those of MiniLM, and BERT's usual dropout.
VOCABULARY, POSITIONS, ENCODER_WIDTH, ENCODER_DROPOUT = 30522, 512, 384, 0.1


def _modules(torch):
  nn = torch.nn

  class Dense(nn.Module):
    def __init__(self, width, hidden):
      super().__init__()
      layers = [nn.BatchNorm1d(width), nn.Dropout(DROPOUT)]
      for inner in (width, hidden, hidden):
        layers += [nn.Linear(inner, hidden), nn.ReLU()]
      self.layers = nn.Sequential(*layers)

    def forward(self, values):
      return self.layers(values.mean(dim=1))

  class Fusion(nn.Module):
    def __init__(self, case, product):
      super().__init__()
      self.product = product
      self.lstm = nn.LSTM(WIDTHS["text"], HIDDEN, batch_first=True)
      self.text = nn.Linear(HIDDEN, case["text_out"])
      self.audio = Dense(WIDTHS["audio"], case["audio"])
      self.vision = Dense(WIDTHS["vision"], HIDDEN)
      parts = (case["audio"], HIDDEN, case["text_out"])
      width = sum(parts)
      if product:
        width = (parts[0] + 1) * (parts[1] + 1) * (parts[2] + 1)
      post = case["post"]
      self.head = nn.Sequential(
        nn.Dropout(DROPOUT),
        nn.Linear(width, post),
        nn.ReLU(),
        nn.Linear(post, post),
        nn.ReLU(),
        nn.Linear(post, 1),
      )

    def forward(self, text, audio, vision):
      _, (last, _) = self.lstm(text)
      text = self.text(nn.functional.dropout(last[0], DROPOUT, self.training))
      parts = [self.audio(audio), self.vision(vision), text]
      if not self.product:
        return self.head(torch.cat(parts, dim=-1))
      fused = parts[0].new_ones(len(text), 1)
      for part in parts:
        part = torch.cat([torch.ones_like(part[:, :1]), part], dim=-1)
        fused = torch.einsum("bi,bj->bij", fused, part).flatten(1)
      return 6 * torch.sigmoid(self.head(fused)) - 3

  return Fusion


def _encoder(torch, case):
  """BERT as `transformers` has it, with its fastest attention, and token ids."""
  from transformers import BertConfig, BertModel

  config = BertConfig(
    vocab_size=VOCABULARY,
    hidden_size=ENCODER_WIDTH,
    num_hidden_layers=case["layers"],
    num_attention_heads=case["heads"],
    intermediate_size=case["ffn"],
    max_position_embeddings=POSITIONS,
    hidden_dropout_prob=ENCODER_DROPOUT,
    attention_probs_dropout_prob=ENCODER_DROPOUT,
  )
  bert = BertModel(config, add_pooling_layer=False)

  class Encoder(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.bert = bert

    def forward(self, tokens, mask):
      return self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state

  return Encoder()


def _step(torch, name, device):
  """Returns a function that runs one training step of a case."""
  case, nn = CASES[name], torch.nn
  shape = (case["batch"], case["steps"])
  if name == "lstm":
    model = nn.LSTM(case["width"], case["hidden"], batch_first=True)
    inputs = [torch.randn(*shape, case["width"], device=device)]
  elif name == "transformer":
    model = nn.TransformerEncoderLayer(
      case["width"],
      case["heads"],
      case["ffn"],
      dropout=0.0,
      activation="gelu",
      batch_first=True,
      norm_first=True,
    )
    inputs = [torch.randn(*shape, case["width"], device=device)]
  elif name == "encoder":
    model = _encoder(torch, case)
    tokens = torch.randint(1, VOCABULARY, shape, device=device)
    inputs = [tokens, torch.ones_like(tokens)]
  else:
    model = _modules(torch)(case, product=name == "tfn")
    inputs = [torch.randn(*shape, width, device=device) for width in WIDTHS.values()]
  model = model.to(device).train()
  optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

  def step():
    optimizer.zero_grad()
    outputs = model(*inputs)
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    outputs.abs().mean().backward()
    optimizer.step()

  return step


def main() -> None:
  """Times every case."""
  import torch

  parser = argparse.ArgumentParser()
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--device", default="cpu")
  parser.add_argument("--threads", type=int, default=0)
  parser.add_argument("--cases", default=",".join(CASES))
  arguments = parser.parse_args()
  if arguments.threads:
    torch.set_num_threads(arguments.threads)
  inner = 1 if arguments.device == "cpu" else 20
  wait = torch.cuda.synchronize if arguments.device == "cuda" else (lambda: None)
  seconds = {}
  for name in arguments.cases.split(","):
    step = _step(torch, name, arguments.device)
    for _ in range(3):
      step()
    timings = []
    for _ in range(arguments.repeats):
      wait()
      start = time.perf_counter()
      for _ in range(inner):
        step()
      wait()
      timings.append((time.perf_counter() - start) / inner)
    seconds[name] = statistics.median(timings)
  print(json.dumps({"version": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
  main()
