// The users, their sessions and a form, which the page leaves to the reader.
package main

import (
	"encoding/json"
	"log"
	"math/rand"
	"net/http"
	"os"
	"path"
	"strconv"
	"sync"
)

type user struct {
	ID       int64
	GroupIDs []int64
	Banned   bool
}

var users = map[int64]*user{
	42: {ID: 42, GroupIDs: []int64{7}},
	43: {ID: 43},
	44: {ID: 44, Banned: true},
}

var sessions sync.Map

func currentUser(r *http.Request) *user {
	cookie, err := r.Cookie("session")
	if err != nil {
		return nil
	}
	id, found := sessions.Load(cookie.Value)
	if !found {
		return nil
	}
	return users[id.(int64)]
}

func topicNumber(r *http.Request) int64 {
	number, _ := strconv.ParseInt(path.Base(r.URL.Path), 10, 64)
	return number
}

func fail(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

func main() {
	mux := routes()
	mux.HandleFunc("/login/", func(w http.ResponseWriter, r *http.Request) {
		session := strconv.FormatUint(rand.Uint64(), 36)
		sessions.Store(session, topicNumber(r))
		http.SetCookie(w, &http.Cookie{Name: "session", Value: session, Path: "/"})
	})
	mux.HandleFunc("/logout", func(w http.ResponseWriter, r *http.Request) {
		somebody := currentUser(r)
		cookie, _ := r.Cookie("session")
		sessions.Delete(cookie.Value)
		fail(w, endPolls(somebody.ID))
	})
	mux.HandleFunc("/say", func(w http.ResponseWriter, r *http.Request) {
		var said struct {
			Text     string
			Audience map[string][]int64
		}
		fail(w, json.NewDecoder(r.Body).Decode(&said))
		fail(w, publish("/topic/1", said.Text, said.Audience["user_ids"]...))
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], mux))
}
