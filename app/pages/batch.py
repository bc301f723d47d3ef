"""Which text, which tokens? The batch's sequences by loss, one of them token by token, and what can
be done about it.
"""

from app.pages import guarded
from app.pages._batch import page

guarded(page)
