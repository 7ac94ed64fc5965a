"""The store of models as programs see it: what stored_models.py finds, and what pull.py exports."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from qwonnx.handlers.models.stored_models import PulledModel, Record, StoredModels

if TYPE_CHECKING:  # the exporter
    from qwonnx.export.weight_files.progress import ExportProgress


class ModelStore(StoredModels):
    """The models of this machine, and a way to get more."""

    def add(
        self,
        source: str,
        recipe: str | None = None,
        *,
        revision: str | None = None,
        target: str | None = None,
        name: str | None = None,
        offline: bool = False,
        again: bool = False,
        memory_bytes: int | None = None,
        on_progress: Callable[[ExportProgress], None] | None = None,
        on_choice: Callable[[Record], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> PulledModel:
        """Export a checkpoint into the store, or find it there; what an interrupted one wrote is used.

        Args:
            source: a hub repository (with @revision or without), a folder, a GGUF file or a URL.
            recipe: a name that `qwonnx plan` shows, or a TOML file; None is the one that suits this machine.
            revision: branch, tag or commit of a repository.
            target: of the export; None is the default.
            name: for the model; None makes it from the source's.
            offline: use of the hub only what its cache has.
            again: export a model that is there already, and replace it.
            memory_bytes: limit of tensors in flight; None is the export's own.
            on_progress: see export_checkpoint.
            on_choice: called with the record before the export begins.
            on_note: see export_checkpoint; also says if a repository has a newer commit than the model that is there.

        Raises:
            ModelStoreError: no recipe suits the machine, the name belongs to another source, or the store cannot be
                written.
            ExportError: see export_checkpoint.
        """
        from qwonnx.handlers.models.pull import Wish, pull

        wish = Wish(source, recipe, revision, target, name, offline, again, memory_bytes)
        return pull(self, wish, on_progress=on_progress, on_choice=on_choice, on_note=on_note)
