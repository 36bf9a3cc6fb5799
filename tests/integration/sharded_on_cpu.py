"""The command `codehead` in processes that accelerate takes for those of an accelerator.

On a CPU it shards nothing. Told that this is one, it runs FSDP2 over gloo. Give with it
`training.accelerator_config={use_configured_state: true}`.
"""

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from codehead.__main__ import main

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_XPU
main()
