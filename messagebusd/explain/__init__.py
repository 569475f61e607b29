"""Why did somebody get a message, or not? Told afterwards, from what is known.

``evidence`` is what one worker knows, ``verdict`` what that means for each poll, ``words`` how it
is said. Nothing here reads a store or a socket; the door does (`messagebusd.http.explaining`).
"""
