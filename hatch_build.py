"""Installation: compile the CPU kernels where there is a C++ compiler, otherwise install without them."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SCRIPT = Path(__file__).parent / "src/deformvit/ops/native/build.py"


class CompileKernels(BuildHookInterface):  # type: ignore[type-arg, misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Called before the files of a wheel, or of an editable installation, are collected."""
        spec = importlib.util.spec_from_file_location("deformvit_build", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        if reason := script.build():
            self.app.display_warning(f"deformvit: without compiled CPU kernels, since {reason}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"  # plain C: good for any Python and any PyTorch
        build_data["artifacts"].append(str(script.LIBRARY.relative_to(self.root)))
