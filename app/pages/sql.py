"""Ask anything: the named queries first, then any one SELECT in the sandbox; table, chart,
download.
"""

from app.pages import guarded
from app.pages._sql import page

guarded(page)
