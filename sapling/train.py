"""Makes the built-in model: `python -m sapling.train --out sapling`.

Everything follows from the seed: the corpus, the tokenizer made from a sample of it, and the weights trained
on it. The files appear in the folder together, at the end.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sapling.batches import Batches
from sapling.corpus import stream
from sapling.documents import BREAK
from sapling.model import Sapling, Shape
from sapling.tokenizer import END_OF_TEXT, END_OF_TURN, make_tokenizer, save_tokenizer, token_id

WARMUP_SHARE = 0.01
PEAK_RATE, LAST_SHARE = 5e-3, 0.02
TOKENIZER_DOCUMENTS = 20_000


def rate_share(progress: float) -> float:
    """Of the peak learning rate: a linear warm-up, then a cosine down to `LAST_SHARE`."""
    warm = min(1.0, (progress + 1e-3) / WARMUP_SHARE)
    return warm * (LAST_SHARE + (1 - LAST_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, at AdamW's scale of updates; AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def update(model: nn.Module, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()


def train(model: nn.Module, batches: Batches, num_tokens: int) -> None:
    optimizers = make_optimizers(model)
    started, smooth, done, step = time.monotonic(), 0.0, 0, 0
    while done < num_tokens:
        progress = done / num_tokens
        tokens = batches.batch(step, progress)
        loss = loss_of(model, tokens)
        loss.backward()
        update(model, optimizers, PEAK_RATE * rate_share(progress))
        done += tokens.shape[0] * (tokens.shape[1] - 1)
        smooth = 0.97 * smooth + 0.03 * loss.item() if step else loss.item()
        if step % 20 == 0 or done >= num_tokens:
            speed = done / (time.monotonic() - started)
            print(f"step {step:5} tokens {done:8} loss {smooth:.3f} {speed:6.0f} tokens/s", flush=True)
        step += 1


def save_config(folder: Path, shape: Shape, end_of_text: int, end_of_turn: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": shape.max_positions,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # the name before transformers 4.56
    }
    generation = {"bos_token_id": end_of_text, "eos_token_id": [end_of_text, end_of_turn]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def save_weights(folder: Path, model: nn.Module) -> None:
    weights = {name: weight.detach().bfloat16().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make(out: Path, num_tokens: int, seed: int) -> None:
    rng = Random(seed)
    torch.manual_seed(seed)
    sample = (text.replace(BREAK, "") for text in islice(stream(rng, 0.05), TOKENIZER_DOCUMENTS))
    shape = Shape()
    tokenizer = make_tokenizer(sample, shape.vocab_size)
    assert tokenizer.get_vocab_size() == shape.vocab_size, "the sample has too few different words"
    model = Sapling(shape)
    train(model, Batches(tokenizer, rng), num_tokens)
    with tempfile.TemporaryDirectory(dir=out.parent) as name:
        folder = Path(name)
        save_tokenizer(tokenizer, folder, shape.max_positions)
        save_config(folder, shape, token_id(tokenizer, END_OF_TEXT), token_id(tokenizer, END_OF_TURN))
        save_weights(folder, model)
        out.mkdir(exist_ok=True)
        for path in sorted(folder.iterdir()):
            shutil.move(path, out / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make(options.out.resolve(), options.tokens, options.seed)


if __name__ == "__main__":
    main()
