"""What inside the step broke it? The events of a traced step in order, the update by tensor, the
line along it.
"""

from app.pages import guarded
from app.pages._microscope import page

guarded(page)
