"""Every form in which a directory may hold weights, read tensor by tensor, and what is said of damaged ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from protocol.errors import ModelNotFound, UnsupportedModel
from workers.model.weights.checkpoint import Checkpoint, open_checkpoint
from workers.model.weights.weight_piece import Piece, Units, stacked
from workers.shard import Shard

Tensors = dict[str, Tensor]
TENSORS = {
    "body.wide": torch.arange(48.0).view(12, 4),
    "body.half": torch.arange(24.0).view(4, 6).to(torch.bfloat16),
    "body.bias": torch.arange(12.0),
    "head": torch.arange(20.0).view(5, 4),
}
PIECES = [Piece(name, tuple(tensor.shape)) for name, tensor in TENSORS.items()]
WHOLE = Shard()


def save_pickled(tensors: Any, path: Path) -> None:
    torch.save(tensors, path)


def save_legacy(tensors: Any, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def one_file(save: Callable[[Tensors, Path], None], name: str) -> Callable[[Path, Tensors], None]:
    return lambda directory, tensors: save(tensors, directory / name)


def sharded(save: Callable[[Tensors, Path], None], name: str) -> Callable[[Path, Tensors], None]:
    """Two files and an index; neighbours lie in different files."""

    def write(directory: Path, tensors: Tensors) -> None:
        stem, suffix = name.rsplit(".", 1)
        placed = {each: f"{stem}-{place % 2 + 1}-of-2.{suffix}" for place, each in enumerate(tensors)}
        for file in set(placed.values()):
            save({each: tensors[each] for each in tensors if placed[each] == file}, directory / file)
        (directory / f"{name}.index.json").write_text(json.dumps({"weight_map": placed}))

    return write


SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FORMATS = {
    "safetensors": one_file(save_file, SAFE),
    "sharded-safetensors": sharded(save_file, SAFE),
    "pickled": one_file(save_pickled, PICKLED),
    "sharded-pickled": sharded(save_pickled, PICKLED),
    "legacy": one_file(save_legacy, PICKLED),
    "sharded-legacy": sharded(save_legacy, PICKLED),
}
every_format = pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)


def opened(directory: Path, load_format: str = "auto") -> Checkpoint:
    return open_checkpoint(directory, load_format, seed=0)


def read(directory: Path, piece: Piece, shard: Shard = WHOLE) -> Tensor:
    checkpoint = opened(directory)
    checkpoint.check([piece], ignored=tuple(TENSORS), prefix="")
    part = checkpoint.read(piece, shard).clone()
    checkpoint.close()
    return part


@every_format
def test_whole_tensors_are_read_as_they_were_saved(write: Any, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    checkpoint = opened(tmp_path)
    checkpoint.check(PIECES, ())
    for piece in PIECES:
        torch.testing.assert_close(checkpoint.read(piece, WHOLE), TENSORS[piece.name], rtol=0, atol=0)


PARTS = {
    "rows": (Piece("body.wide", (12, 4), 0, (stacked(12),)), slice(6, 12), slice(None)),
    "columns": (Piece("body.wide", (12, 4), 1, (stacked(4),)), slice(None), slice(2, 4)),
    "a shorter last part": (Piece("head", (5, 4), 0, (stacked(5),)), slice(3, 5), slice(None)),
    "two stretches": (
        Piece("body.wide", (12, 4), 0, (stacked(2, 3), stacked(2, 3, offset=6))),
        [3, 4, 5, 9, 10, 11],
        slice(None),
    ),
    "stretches out of order": (
        Piece("body.half", (4, 6), 1, (Units((5, 0, 4, 2)),)),
        slice(None),
        [4, 2],
    ),
}


@every_format
@pytest.mark.parametrize("part", PARTS)
def test_a_rank_reads_its_stretches_in_their_order(write: Any, part: str, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    piece, rows, columns = PARTS[part]
    found = read(tmp_path, piece, Shard(1, 2))
    assert found.shape == piece.part_shape(Shard(1, 2))
    torch.testing.assert_close(found, TENSORS[piece.name][rows][:, columns], rtol=0, atol=0)


@every_format
def test_a_transposed_tensor_comes_with_outputs_first(write: Any, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    piece = Piece("body.wide", (12, 4), 0, (stacked(12),), transposed=True)
    torch.testing.assert_close(read(tmp_path, piece, Shard(1, 2)), TENSORS["body.wide"][6:].t())


@every_format
def test_a_tensor_may_be_read_more_than_once(write: Any, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    checkpoint = opened(tmp_path)
    checkpoint.check(PIECES, ())
    first, again, third = (checkpoint.read(PIECES[0], WHOLE).clone() for _ in range(3))
    assert first.equal(again) and first.equal(third)


@every_format
def test_what_does_not_fit_the_model_is_named(write: Any, tmp_path: Path) -> None:
    write(tmp_path, TENSORS)
    pieces = [
        Piece("body.wide", (12, 5)),
        Piece("body.half", (4, 6)),
        Piece("head", (5, 4)),
        Piece("tail", (1,)),
    ]
    with pytest.raises(UnsupportedModel) as raised:
        opened(tmp_path).check(pieces, ())
    for sentence in (
        "tail is missing",
        "body.wide has shape [12, 4] where [12, 5] is expected",
        "body.bias is not part of this architecture",
        str(tmp_path),
    ):
        assert sentence in str(raised.value)


@every_format
def test_tensors_that_are_no_plain_floats_are_named(write: Any, tmp_path: Path) -> None:
    write(tmp_path, {"a": torch.zeros(2, dtype=torch.int8)})
    with pytest.raises(UnsupportedModel, match=r"a is of dtype .*8, which is none of float64"):
        opened(tmp_path).check([Piece("a", (2,))], ())


@every_format
def test_names_may_lack_the_prefix_all_together(write: Any, tmp_path: Path) -> None:
    write(tmp_path, {name.removeprefix("body."): tensor for name, tensor in TENSORS.items()})
    checkpoint = opened(tmp_path)
    checkpoint.check(PIECES, (), prefix="body.")
    for piece in PIECES:
        assert checkpoint.read(piece, WHOLE).equal(TENSORS[piece.name])


@every_format
def test_names_that_lack_the_prefix_in_part_are_missing(write: Any, tmp_path: Path) -> None:
    write(
        tmp_path,
        {name: tensor for name, tensor in TENSORS.items() if name != "body.bias"}
        | {"bias": TENSORS["body.bias"]},
    )
    with pytest.raises(UnsupportedModel, match=r"body\.bias is missing; bias is not part"):
        opened(tmp_path).check(PIECES, (), prefix="body.")


@pytest.mark.parametrize("save", (save_pickled, save_legacy))
def test_tensors_that_share_memory_are_each_read(save: Any, tmp_path: Path) -> None:
    embedding = torch.arange(8.0).view(4, 2)
    save({"embedding": embedding, "lm_head": embedding, "half": embedding[2:]}, tmp_path / PICKLED)
    checkpoint = opened(tmp_path)
    pieces = [Piece("embedding", (4, 2)), Piece("half", (2, 2))]
    checkpoint.check(pieces, ignored=("lm_head",))
    assert checkpoint.read(pieces[0], WHOLE).equal(embedding)
    assert checkpoint.read(pieces[1], WHOLE).equal(embedding[2:])


def test_parameters_are_tensors_too(tmp_path: Path) -> None:
    save_pickled({"a": torch.nn.Parameter(torch.ones(2))}, tmp_path / PICKLED)
    assert not read(tmp_path, Piece("a", (2,))).requires_grad


def test_safetensors_go_before_pickled_files_and_other_kinds_are_not_looked_at(tmp_path: Path) -> None:
    FORMATS["safetensors"](tmp_path, TENSORS)
    for name in (PICKLED, "flax_model.msgpack", "tf_model.h5", "consolidated.00.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"not weights")
    assert read(tmp_path, PIECES[0]).equal(TENSORS["body.wide"])


def test_safetensors_in_another_layout_are_not_taken_for_the_weights(tmp_path: Path) -> None:
    FORMATS["sharded-safetensors"](tmp_path, TENSORS)
    (tmp_path / "model.safetensors.index.json").unlink()
    save_file({"other": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    assert read(tmp_path, PIECES[0]).equal(TENSORS["body.wide"])


def test_pickled_files_are_refused_where_safetensors_are_asked_for(tmp_path: Path) -> None:
    FORMATS["pickled"](tmp_path, TENSORS)
    with pytest.raises(ModelNotFound, match=r"a model\.safetensors is needed"):
        opened(tmp_path, "safetensors")


@pytest.mark.parametrize("kind", ("sharded-safetensors", "sharded-pickled"))
def test_a_file_that_an_index_names_and_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    FORMATS[kind](tmp_path, TENSORS)
    missing = next(tmp_path.glob("*-2-of-2.*"))
    missing.unlink()
    with pytest.raises(ModelNotFound, match=rf"names {missing.name}, which is not there"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ("sharded-safetensors", "sharded-pickled", "sharded-legacy"))
def test_a_tensor_that_an_index_places_in_the_wrong_file_is_named(kind: str, tmp_path: Path) -> None:
    FORMATS[kind](tmp_path, TENSORS)
    index = next(tmp_path.glob("*.index.json"))
    placed = json.loads(index.read_text())["weight_map"]
    placed["head"] = placed["body.wide"]
    index.write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UnsupportedModel, match=r"-1-of-2\.\w+ lacks head, which .*index\.json places there"):
        opened(tmp_path)


@pytest.mark.parametrize("content", ("", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'))
@pytest.mark.parametrize("name", (SAFE, PICKLED))
def test_an_index_that_is_none_is_named(content: str, name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.index.json").write_text(content)
    with pytest.raises(UnsupportedModel, match=rf"{name}\.index\.json"):
        opened(tmp_path)


def test_a_tensor_in_two_files_of_a_checkpoint_without_an_index_is_named(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"x": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(UnsupportedModel, match=r"x is in .*a\.safetensors and in .*b\.safetensors"):
        opened(tmp_path)


def truncated(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": truncated,
    "cut in its head": lambda content: content[:20],
    "empty": lambda content: b"",
    "noise": lambda content: bytes(range(256)) * 8,
    "noise in a zip's clothes": lambda content: b"PK\x03\x04" + bytes(range(256)) * 8,
    "a web page": lambda content: b"<!DOCTYPE html><html>sign in</html>",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("kind", ("safetensors", "pickled", "legacy"))
def test_a_damaged_file_is_named(kind: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    FORMATS[kind](tmp_path, TENSORS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UnsupportedModel, match=f"{file.name} is not a readable"):
        read(tmp_path, PIECES[0])


@pytest.mark.parametrize("name", (SAFE, PICKLED))
def test_a_git_lfs_pointer_is_named_as_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(UnsupportedModel, match=f"{name} is a git-lfs pointer"):
        opened(tmp_path)


class WritesAFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("save", (save_pickled, save_legacy))
def test_a_pickle_that_runs_code_is_refused_and_runs_none(save: Any, tmp_path: Path) -> None:
    save({"a": torch.zeros(1), "b": WritesAFile(tmp_path / "ran")}, tmp_path / PICKLED)
    with pytest.raises(
        UnsupportedModel, match=rf"{PICKLED} holds more than weights: reading it would run \S+"
    ):
        opened(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_more_than_weights_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    save_pickled({"a": torch.zeros(1), "args": argparse.Namespace(lr=1)}, tmp_path / PICKLED)
    with pytest.raises(UnsupportedModel, match=r"would run argparse\.Namespace, which is refused"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not a table"),
        ({"model": {"a": torch.zeros(1)}}, "holds 'model', which is not a dense tensor"),
        ({"a": torch.eye(3).to_sparse()}, "holds 'a', which is not a dense tensor"),
    ],
    ids=("a list", "a nested table", "a sparse tensor"),
)
def test_a_pickle_that_is_no_table_of_tensors_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    save_pickled(content, tmp_path / PICKLED)
    with pytest.raises(UnsupportedModel, match=message):
        opened(tmp_path)


def test_a_directory_without_weights_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"a model\.safetensors or pytorch_model\.bin is needed"):
        opened(tmp_path)
