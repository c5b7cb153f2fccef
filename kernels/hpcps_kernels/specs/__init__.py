"""Every kernel by name."""

from __future__ import annotations

from hpcps_kernels.spec import Spec
from hpcps_kernels.specs import embedding, factor, gradient, layer, loss, meet, reduce, rows, text, update

FAMILIES = (embedding, factor, gradient, layer, loss, meet, reduce, rows, text, update)

SPECS: dict[str, Spec] = {spec.name: spec for family in FAMILIES for spec in family.SPECS}
