"""The command line of `accelerate launch` for one machine's part of a run."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """Arguments of `accelerate launch` on one node."""

    script: Path
    arguments: tuple[str, ...]
    """Arguments of the script."""
    engine_file: str
    nodes: int
    processes: int
    """Processes on each node."""
    node: int = 0
    """Rank of this node."""
    host: str = ""
    """Address of the first node; needed only with several nodes."""
    port: int = 0
    options: tuple[str, ...] = ()
    """Further options of the launcher."""

    def command(self) -> list[str]:
        """The command line of the launcher."""
        total = self.nodes * self.processes
        words = [sys.executable, "-m", "mtl_dist.cluster.quiet_launch", "accelerate", "launch"]
        words += ["--config_file", self.engine_file]
        words += ["--num_processes", str(total), "--num_machines", str(self.nodes)]
        if self.nodes > 1:
            words += ["--machine_rank", str(self.node), "--main_process_ip", self.host]
            words += ["--rdzv_backend", "static", "--same_network"]
        if total > 1:
            words += ["--main_process_port", str(self.port)]
        return [*words, *self.options, str(self.script), *self.arguments]
