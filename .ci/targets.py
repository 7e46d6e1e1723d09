"""Print what `ia-core conform` judges if it is given no targets."""

from ia_core.backends import indirect_attention
from ia_core.conformance._command import everything

print(*everything(indirect_attention, None))
