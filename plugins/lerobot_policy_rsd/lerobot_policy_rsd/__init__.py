"""Policy folders of rsd as a policy of LeRobot, which imports this package by the name of its distribution."""

from lerobot_policy_rsd.configuration_rsd import RSDConfig
from lerobot_policy_rsd.modeling_rsd import RSDPolicy
from lerobot_policy_rsd.processor_rsd import make_rsd_pre_post_processors

__all__ = ["RSDConfig", "RSDPolicy", "make_rsd_pre_post_processors"]
