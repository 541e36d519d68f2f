"""`TeacherSettings`: what recipes say of a base that teaches; imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, Field

from offline.engines.opened import EngineName
from vllm_moe_prune.errors import PruneError

_KEPT = re.compile(r"[0-9a-f]{16}|\..*")  # teachers, and what they are made under
TEACHER_PLACES = frozenset({"teacher", "teacher_tensor_parallel"})


class TeacherSettings(BaseModel):
    """How the base reads what a model is taught by its next tokens."""

    teacher: Path | None = Field(
        default=None,
        description="folder that keeps the base's next tokens, for other runs on the same text to "
        "take; OUT.run/teacher if not given",
    )
    teacher_engine: EngineName | None = Field(
        default=None, description="what runs the base for them; transformers if not given"
    )
    teacher_tensor_parallel: int | None = Field(
        default=None, ge=1, description="GPUs that share it, with --teacher-engine vllm"
    )

    @property
    def teacher_flags(self) -> tuple[str, ...]:
        """Return the names of what is given."""
        names = TeacherSettings.model_fields
        return tuple(name for name in names if getattr(self, name) is not None)

    def check_teacher(self) -> None:
        """Refuse a place where no teacher can be kept, before any work.

        :raises PruneError: naming it and what is in it, or if GPUs are given that no vLLM shares
        """
        if self.teacher_tensor_parallel is not None and self.teacher_engine != "vllm":
            raise PruneError("--teacher-tensor-parallel is of --teacher-engine vllm")
        folder = self.teacher
        if folder is None:
            return
        if folder.exists() and not folder.is_dir():
            raise PruneError(f"--teacher {folder} is not a folder", hint="give it one of its own")
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        foreign = next((name for name in names if not _KEPT.fullmatch(name)), None)
        if foreign is not None:
            raise PruneError(
                f"--teacher {folder} holds {foreign}, which is no teacher's",
                hint="give it a folder of its own",
            )
        if not folder.resolve().parent.is_dir():
            raise PruneError(f"--teacher: {folder.parent} is not a folder", hint="create it first")
