"""The engine on hardware: experts lie in host memory and are copied to the device as a plan decides. Needs torch.

from engine.runtime import offload, offloaded
model = offload("mistralai/Mixtral-8x7B-v0.1", load_plan("p.toml"), device="cuda")
model.generate(...)
offloaded(model).log
"""

from engine.runtime.clocks.timing import Timings
from engine.runtime.links.thread_link import EmulatedLink
from engine.runtime.offload import offload
from engine.runtime.offload_state import OffloadState, offloaded

__all__ = ["EmulatedLink", "OffloadState", "Timings", "offload", "offloaded"]
