const users = {
  42: { id: 42, groupIds: [7], banned: false },
  43: { id: 43, groupIds: [], banned: false },
  44: { id: 44, groupIds: [], banned: true },
};

module.exports = { find: (id) => users[id] };
