"""params.yaml as frozen objects: every key is explained here, every other key is refused.

Imports nothing heavy, so a typo is reported within the first second. What needs to know the tasks and the pieces of the RL
step (does an order name an existing phase? does `grpo` take this option?) is checked in `plan/check/`, on top of this.
"""

from trainorder.config.experiment import (
    DEFAULT,
    EvaluationConfig,
    MeasureConfig,
    MergeConfig,
    Permutations,
    PhaseConfig,
)
from trainorder.config.judges import (
    ROLES,
    AnyJudgeConfig,
    EndpointConfig,
    EndpointJudgeConfig,
    JudgeConfig,
    ModelJudgeConfig,
    PreferenceConfig,
    PreferenceSettings,
    QuestionConfig,
    Role,
)
from trainorder.config.model import (
    VOCABULARY,
    LoraConfig,
    PolicyConfig,
    RolloutConfig,
    SftConfig,
    SftPhaseConfig,
    TrainingConfig,
)
from trainorder.config.params import (
    PARAMS_VARIABLE,
    Params,
    load_params,
    params_file,
    parse_params,
    remote_code_allowed,
)
from trainorder.config.rl import AlarmConfig, MethodConfig, ModelFolder, RlConfig
from trainorder.config.tasks import GradingConfig, IsolationLevel, TaskConfig
from trainorder.config.values import (
    ENGINE_OPTIONS,
    SOURCES,
    Coef,
    Denominator,
    OptimizerName,
    Piece,
    Reduction,
    Schedule,
    Section,
)

__all__ = [
    "DEFAULT",
    "ENGINE_OPTIONS",
    "PARAMS_VARIABLE",
    "ROLES",
    "SOURCES",
    "VOCABULARY",
    "AlarmConfig",
    "AnyJudgeConfig",
    "Coef",
    "Denominator",
    "EndpointConfig",
    "EndpointJudgeConfig",
    "EvaluationConfig",
    "GradingConfig",
    "IsolationLevel",
    "JudgeConfig",
    "LoraConfig",
    "MeasureConfig",
    "MergeConfig",
    "MethodConfig",
    "ModelFolder",
    "ModelJudgeConfig",
    "OptimizerName",
    "Params",
    "Permutations",
    "PhaseConfig",
    "Piece",
    "PolicyConfig",
    "PreferenceConfig",
    "PreferenceSettings",
    "QuestionConfig",
    "Reduction",
    "RlConfig",
    "Role",
    "RolloutConfig",
    "Schedule",
    "Section",
    "SftConfig",
    "SftPhaseConfig",
    "TaskConfig",
    "TrainingConfig",
    "load_params",
    "params_file",
    "parse_params",
    "remote_code_allowed",
]
