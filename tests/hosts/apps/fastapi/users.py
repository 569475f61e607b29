from types import SimpleNamespace

USERS = {
    42: SimpleNamespace(id=42, group_ids=[7], banned=False),
    43: SimpleNamespace(id=43, group_ids=[], banned=False),
    44: SimpleNamespace(id=44, group_ids=[], banned=True),
}


def find(user_id):
    return USERS.get(user_id)
