"""What kind of memory: the taxonomy of system 104 (memory-frame), arXiv 2509.18868.

Memory is a state that was written (in pretraining, fine-tuning or inference), persists, can later be addressed, and influences
outputs. A `Quadruple` says where it is held, how long it lasts, what writes and what reads it, and what control there is over it;
`classify` derives its kind. The stages are the links of the causal chain write → read → inhibit / update.

The quadruple and the four kinds are the paper's; the values that each field may take and the rules of `classify` are ours.

    >>> classify(Quadruple(Location.WEIGHTS, Persistence.PERMANENT, WritePath.PRETRAIN, AccessPath.FORWARD)).value
    'parametric'
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Location(StrEnum):
    """Where the memory is held."""

    WEIGHTS = "weights"
    ADAPTER = "adapter"
    ACTIVATIONS_KV = "activations_kv"
    RECURRENT_STATE = "recurrent_state"
    SOFT_TOKEN = "soft_token"
    STORE_TEXT = "store_text"
    STORE_VECTOR = "store_vector"
    STORE_GRAPH = "store_graph"
    TOOL_LOG = "tool_log"


class Persistence(StrEnum):
    """How long it lasts, shortest first: a later member outlasts an earlier one."""

    TOKEN = "token"
    REQUEST = "request"
    SESSION = "session"
    CROSS_SESSION = "cross_session"
    PERMANENT = "permanent"

    def outlasts(self, other: Persistence) -> bool:
        """Whether what lasts this long outlasts `other`.

        Example:
            >>> Persistence.SESSION.outlasts(Persistence.REQUEST), Persistence.TOKEN.outlasts(Persistence.TOKEN)
            (True, False)
        """
        order = list(Persistence)
        return order.index(self) > order.index(other)


class WritePath(StrEnum):
    """What writes it."""

    PRETRAIN = "pretrain"
    FINETUNE = "finetune"
    EDIT = "edit"
    PROMPT = "prompt"
    STATE_UPDATE = "state_update"
    STORE_UPSERT = "store_upsert"
    REFLECTION = "reflection"


class AccessPath(StrEnum):
    """What reads it."""

    FORWARD = "forward"
    ATTENTION = "attention"
    RETRIEVAL = "retrieval"
    TOOL_CALL = "tool_call"
    REPLAY = "replay"


class Revert(StrEnum):
    """How well a write, or the system's effect, can be undone."""

    NONE = "none"
    APPROX = "approx"
    EXACT = "exact"


class Stage(StrEnum):
    """The links of the causal chain."""

    WRITE = "write"
    READ = "read"
    INHIBIT = "inhibit"
    UPDATE = "update"


class MemoryKind(StrEnum):
    """The four kinds of memory."""

    PARAMETRIC = "parametric"
    CONTEXTUAL = "contextual"
    EXTERNAL = "external"
    EPISODIC = "procedural/episodic"


@dataclass(frozen=True)
class Controllability:
    """What control the system gives over the memory: see what is in it, delete one item, keep versions, trace a reading to its source,
    keep reads and writes within a declared scope; and how well a write can be undone."""

    inspectable: bool = False
    deletable: bool = False
    versioned: bool = False
    attributable: bool = False
    scope_limited: bool = False
    revert: Revert = Revert.NONE


@dataclass(frozen=True)
class Quadruple:
    """Location, persistence, write and access path, with controllability: what decides the kind of a memory.

    `half_life` is in days, after which half of what was written can still be addressed; None where it does not fade or is not known.
    """

    location: Location
    persistence: Persistence
    write_path: WritePath
    access_path: AccessPath
    controllability: Controllability = Controllability()
    half_life: float | None = None


def classify(memory: Quadruple) -> MemoryKind:
    """The kind of a memory; the first rule that fits decides, and every combination has a kind.

    1. written by reflection, read by replay, or a tool log that outlives the session: procedural/episodic;
    2. held in a store: external;
    3. held in weights or an adapter, or in a permanent soft token: parametric;
    4. anything else: contextual.
    """
    lasting_log = memory.location is Location.TOOL_LOG and memory.persistence is Persistence.CROSS_SESSION
    if memory.write_path is WritePath.REFLECTION or memory.access_path is AccessPath.REPLAY or lasting_log:
        return MemoryKind.EPISODIC
    if memory.location in (Location.STORE_TEXT, Location.STORE_VECTOR, Location.STORE_GRAPH):
        return MemoryKind.EXTERNAL
    permanent_token = memory.location is Location.SOFT_TOKEN and memory.persistence is Persistence.PERMANENT
    if memory.location in (Location.WEIGHTS, Location.ADAPTER) or permanent_token:
        return MemoryKind.PARAMETRIC
    return MemoryKind.CONTEXTUAL
