"""A step's examples, drawn by their lengths from any data set that has rows."""

from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import seed_worker

from finetune.data.batch import GlobalStepSampler, StepSampler, TrainDataLoader
from finetune.data.stream import StreamedStepSampler, TokenizingRows
from finetune.errors import FinetuneError
from finetune.training.evaluation import EvaluatingTrainer

__all__ = ["LoadingTrainer"]


class LoadingTrainer(EvaluatingTrainer):
    """How training data is loaded; see `finetune.training.trainer.Trainer`."""

    train_lengths: np.ndarray | None

    def get_train_dataloader(self) -> DataLoader:
        """Load this process's share of each step; the sampler divides, so accelerate must not.

        What can't be drawn by its length is loaded as upstream loads it.
        """
        collator = self.data_collator
        self.sampler = None
        if hasattr(collator, "collate"):  # of our own: the data set has lengths
            return self._load_steps(self.train_dataset, collator)
        dataset: Any = self.train_dataset
        if not self._has_rows(dataset):
            return super().get_train_dataloader()
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collator = self._get_collator_with_removed_columns(collator, description="training")
        self.behaviour = None if self.model_init is not None else self.behaviour
        self.train_lengths = self.lengths_of(dataset)
        is_known = self.train_lengths is not None and self.knows_model(dataset, collator, self.train_lengths)
        if not is_known or not self._draws_steps():
            return super().get_train_dataloader()
        return self._load_steps(dataset, collator)

    def _has_rows(self, dataset: Any) -> bool:
        return dataset is not None and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)

    def _draws_steps(self) -> bool:
        """Return whether the script leaves it to the `Trainer` to group examples by their length."""
        strategy = str(getattr(self.args.train_sampling_strategy, "value", self.args.train_sampling_strategy))
        return (
            strategy == "group_by_length"
            and not self.is_overridden("_get_train_sampler")
            and self.args.n_gpu <= 1
            and self.args.parallelism_config is None
        )

    def _load_steps(self, dataset: Any, collator: Any) -> TrainDataLoader:
        args = self.args
        if len(dataset) < args.world_size:
            raise FinetuneError(
                f"Expected a training example for each of {args.world_size} processes, but got "
                f"{len(dataset)}. Start fewer processes."
            )
        self.sampler = self.build_sampler()
        return TrainDataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and not args.use_cpu,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),  # older ones have none
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )

    def build_sampler(self) -> StepSampler | None:
        """Return the sampler that draws steps, or None where transformers' own draws batches."""
        args, dataset = self.args, self.train_dataset
        size = self._train_batch_size
        settings: dict[str, Any] = {
            "step_size": size * args.world_size * args.gradient_accumulation_steps,
            "seed": args.seed if args.data_seed is None else args.data_seed,
            "accumulation_steps": args.gradient_accumulation_steps,
            "rank": args.process_index,
            "world_size": args.world_size,
        }
        if isinstance(dataset, TokenizingRows):
            return StreamedStepSampler(dataset, **settings)
        lengths: Any = self.train_lengths
        if hasattr(self.data_collator, "collate"):
            column: Any = dataset
            lengths = column["length"]
        elif lengths is None or self.behaviour is None or not self._draws_steps():
            return None
        return GlobalStepSampler(lengths, batch_size=size if args.dataloader_drop_last else None, **settings)
