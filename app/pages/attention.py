"""What did the head do? All heads small, one of them over time, its weights before, at and after,
the logit lens.
"""

from app.pages import guarded
from app.pages._attention import page

guarded(page)
