"""A toy so small that all of SpecGR trains on it in seconds."""

from specgr import train
from specgr.configuration.config import read_arguments

CONFIG = """
dataset: toy
digits: 32
max_history: 4
tiger: {d_model: 16, d_ff: 16, layers: 1, heads: 2, d_kv: 8, projection: 8, dropout: 0.1}
unisrec: {hidden: 8, inner: 8, layers: 1, experts: 2}
sasrec_t: {hidden: 8, inner: 8, layers: 1, experts: 1}
train_tiger: {steps: 6, eval_steps: 3, batch_size: 16, learning_rate: 3e-3, warmup_steps: 2}
train_unisrec: {epochs: 0, steps: 4, eval_steps: 2, batch_size: 16, learning_rate: 3e-3}
train_sasrec_t: {epochs: 0, steps: 4, eval_steps: 2, batch_size: 16, learning_rate: 3e-3}
stage1: {epochs: 0, steps: 4, eval_steps: 2, batch_size: 16, generation_batch_size: 8, learning_rate: 3e-3}
stage2: {epochs: 0, steps: 4, eval_steps: 2, batch_size: 16, generation_batch_size: 8, learning_rate: 1e-3}
validation: {samples: 20, k: 10}
"""


def flags(world, output, *more):
    return ["--config", str(world / "config.yaml"), "--data_path", str(world / "data"), "--embeddings",
            str(world / "data/toy/embeddings.npy"), "--output_dir", str(world / output), *more]  # fmt: skip


def run(world, output, *more):
    train.main(*read_arguments(flags(world, output, *more), train.Flags))
    return world / output / "toy"
