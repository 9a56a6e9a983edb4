"""An adapter in a repository of the Hub: what goes there, what must not, and how it gets there.

    run or adapter -> contents (adapter, card, recipe, lock, report) -> secrets -> shown, agreed -> uploaded in one commit

Only what `contents` lists is ever sent, whatever else lies in the folder.
"""
