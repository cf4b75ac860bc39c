"""The simulator: whole clusters in one process, in virtual time, decided by a seed.

    result = run(generate(7))
    for violation in result.violations:
        print(violation)

The real registry, client, sidecar and journal run on a memory network, over disks and an etcd that fail as they do in
life. docs/simulation.md says what is simulated, what is promised, and how to search and replay.
"""

from homeport.mesh.simulation.generate import generate
from homeport.mesh.simulation.run import Result, run
from homeport.mesh.simulation.scenario import Scenario, Step, load, save
from homeport.mesh.simulation.trace import Violation

__all__ = ["Result", "Scenario", "Step", "Violation", "generate", "load", "run", "save"]
