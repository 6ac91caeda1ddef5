"""Every option of a run, documented and bounded where it is declared; `streamcl.config.load` reads them.

A field says with "x-on-resume" what a change of it means to a run that is resumed: "safe" (nothing learned
depends on it), "warn" (it changes what is learned from here on), or "refuse", the default (the saved state
belongs to the old value). A block's mark holds for the fields in it that carry none.
"""
